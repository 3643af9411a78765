//! The models of a server: where their files are, which are loaded, and why others are not.
//!
//! Relevant if you want to know how names become models, and what loading and unloading does to requests in progress: they
//! keep the model that they began with.
//!
//! Invariant: a request never waits for a lock that is held while a model loads, and a name of a client never becomes part
//! of a path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fcdcc::{Error, Result};

use crate::config::ModelConfig;
use crate::error::ApiError;
use crate::served::{Engine, Served};

/// The file of a version in a repository.
const MODEL: &str = "model.onnx";
/// The configuration of a version, or of all versions of a model.
const CONFIG: &str = "model.toml";

/// The models of a server.
pub(crate) struct Registry {
    sources: Vec<PathBuf>,
    engine: Engine,
    default: ModelConfig,
    models: RwLock<BTreeMap<String, BTreeMap<u64, Slot>>>,
    /// Held while models load, so that one loads at a time.
    loading: Mutex<()>,
}

/// One version of a model.
struct Slot {
    served: Option<Arc<Served>>,
    state: State,
}

/// The state of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Loading,
    Ready,
    /// Not loaded, and why.
    Unavailable(String),
}

/// A row of the index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) state: State,
}

/// The files of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    version: u64,
    model: PathBuf,
    config: Option<PathBuf>,
}

impl Registry {
    /// The models at `sources`, none of which is loaded yet. Models without a `model.toml` are served as `default` says.
    ///
    /// # Errors
    /// [`Error::File`] for a source that is neither a model nor a repository, names that cannot be part of an address, and
    /// models of one name; [`Error::Io`] for a folder that cannot be read.
    pub(crate) fn new(sources: &[PathBuf], engine: Engine, default: ModelConfig) -> Result<Self> {
        let registry = Self {
            sources: sources.to_vec(),
            engine,
            default,
            models: RwLock::default(),
            loading: Mutex::default(),
        };
        let mut models = registry.write();
        for (name, files) in scan(sources)? {
            let slot = || Slot { served: None, state: State::Unavailable("not loaded yet".to_owned()) };
            models.insert(name, files.into_iter().map(|files| (files.version, slot())).collect());
        }
        if models.is_empty() {
            return Err(Error::invalid(
                "number of models",
                0,
                "name a model file, or a repository that holds one",
            ));
        }
        drop(models);
        Ok(registry)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, BTreeMap<u64, Slot>>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, BTreeMap<u64, Slot>>> {
        self.models.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of all models.
    pub(crate) fn names(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }

    /// Loads all versions of a model from its files as they are now. A version that is loaded serves until its successor is
    /// ready, and goes on if that cannot be loaded.
    ///
    /// # Errors
    /// 404 for a model without files; for a version that cannot be loaded the status of its error.
    pub(crate) fn load(&self, name: &str) -> Result<(), ApiError> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = scan(&self.sources)?;
        let Some(files) = found.remove(name) else { return Err(self.unknown(name)) };
        let kept: Vec<u64> = files.iter().map(|files| files.version).collect();
        self.write().entry(name.to_owned()).or_default().retain(|version, _| kept.contains(version));
        let mut outcome = Ok(());
        for files in files {
            self.set(name, files.version, State::Loading, None);
            let loaded = self.load_version(name, &files);
            let (state, served) = match loaded {
                Ok(served) => (State::Ready, Some(Arc::new(served))),
                Err(error) => {
                    let error = ApiError::from(error);
                    tracing::warn!(model = name, version = files.version, "not loaded: {}", error.message);
                    let text = error.message.clone();
                    outcome = outcome.and(Err(error));
                    (State::Unavailable(text), None)
                }
            };
            self.set(name, files.version, state, served);
        }
        outcome
    }

    fn load_version(&self, name: &str, files: &Files) -> Result<Served> {
        let config = match &files.config {
            Some(path) => ModelConfig::read(path)?,
            None => self.default.clone(),
        };
        Served::load(name, files.version, &files.model, config, &self.engine)
    }

    /// Sets the state of a version; an earlier model stays where there is no new one.
    fn set(&self, name: &str, version: u64, state: State, served: Option<Arc<Served>>) {
        let mut models = self.write();
        let slot = models.entry(name.to_owned()).or_default().entry(version);
        let slot = slot.or_insert_with(|| Slot { served: None, state: State::Loading });
        slot.state = state;
        if served.is_some() {
            slot.served = served;
        }
        // A failed reload leaves the earlier model in service.
        if slot.served.is_some() && matches!(slot.state, State::Unavailable(_)) {
            slot.state = State::Ready;
        }
    }

    /// Takes all versions of a model out of service; requests in progress are still answered.
    ///
    /// # Errors
    /// 404 for an unknown model.
    pub(crate) fn unload(&self, name: &str) -> Result<(), ApiError> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = self.unknown(name);
        let mut models = self.write();
        for slot in models.get_mut(name).ok_or(unknown)?.values_mut() {
            *slot = Slot { served: None, state: State::Unavailable("unloaded".to_owned()) };
        }
        Ok(())
    }

    /// A loaded model; without a version the newest one that is loaded.
    ///
    /// # Errors
    /// 404 for an unknown model or version, 503 for one that is not loaded.
    pub(crate) fn find(&self, name: &str, version: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let models = self.read();
        let Some(versions) = models.get(name) else {
            drop(models);
            return Err(self.unknown(name));
        };
        let listed = || versions.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let slot = match version {
            None => {
                versions.values().rev().find(|slot| slot.served.is_some()).or(versions.values().next_back())
            }
            Some(version) => {
                let number = version.parse::<u64>().ok();
                let slot = number.and_then(|number| versions.get(&number));
                Some(slot.ok_or_else(|| {
                    let known = listed();
                    ApiError::not_found(format!("model {name} has no version {version:?}: it has {known}"))
                })?)
            }
        };
        let Some(slot) = slot else {
            return Err(ApiError::not_found(format!("model {name} has no versions")));
        };
        slot.served.clone().ok_or_else(|| {
            ApiError::unavailable(match &slot.state {
                State::Unavailable(why) => format!("model {name} is not available: {why}"),
                State::Loading | State::Ready => format!("model {name} is being loaded: try again later"),
            })
        })
    }

    fn unknown(&self, name: &str) -> ApiError {
        let names = self.names().join(", ");
        ApiError::not_found(format!("there is no model {name:?}: there are {names}"))
    }

    /// Versions of a model.
    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        self.read().get(name).map(|of| of.keys().map(u64::to_string).collect()).unwrap_or_default()
    }

    /// The loaded models of a name and version; all names and versions where they are `None`.
    ///
    /// # Errors
    /// 404 and 503 as [`Registry::find`], for a name that is given.
    pub(crate) fn loaded(
        &self,
        name: Option<&str>,
        version: Option<&str>,
    ) -> Result<Vec<Arc<Served>>, ApiError> {
        if let Some(name) = name {
            let found = self.find(name, version)?;
            if version.is_some() {
                return Ok(vec![found]);
            }
        }
        let models = self.read();
        let chosen = models.iter().filter(|(of, _)| name.is_none_or(|name| name == of.as_str()));
        let slots = chosen.flat_map(|(_, versions)| versions.values());
        Ok(slots.filter_map(|slot| slot.served.clone()).collect())
    }

    /// The rows of the index; only those of loaded models if `ready`.
    pub(crate) fn listed(&self, ready: bool) -> Vec<Entry> {
        self.index().into_iter().filter(|entry| !ready || entry.state == State::Ready).collect()
    }

    /// All versions of all models.
    pub(crate) fn index(&self) -> Vec<Entry> {
        let models = self.read();
        let rows = models.iter().flat_map(|(name, versions)| {
            versions.iter().map(|(version, slot)| Entry {
                name: name.clone(),
                version: *version,
                state: slot.state.clone(),
            })
        });
        rows.collect()
    }

    /// Why the server is not ready: a model that has never been loaded. Models that were unloaded on demand do not count.
    pub(crate) fn unready(&self) -> Option<String> {
        let models = self.read();
        let mut slots =
            models.iter().flat_map(|(name, of)| of.iter().map(move |(version, s)| (name, version, s)));
        slots.find_map(|(name, version, slot)| match &slot.state {
            State::Ready => None,
            State::Loading if slot.served.is_some() => None,
            State::Loading => Some(format!("version {version} of model {name} is being loaded")),
            State::Unavailable(why) if why == "unloaded" => None,
            State::Unavailable(why) => Some(format!("version {version} of model {name}: {why}")),
        })
    }
}

/// Refuses parameters of loading and unloading but `known`: models come from the server's own files.
///
/// # Errors
/// 400 with the name of another one.
pub(crate) fn no_parameters<'a>(
    names: impl IntoIterator<Item = &'a str>,
    known: &str,
) -> Result<(), ApiError> {
    match names.into_iter().find(|name| *name != known) {
        None => Ok(()),
        Some(other) => Err(ApiError::bad(format!("parameter {other} is not supported: leave it out"))),
    }
}

/// The files of every model at `sources`.
fn scan(sources: &[PathBuf]) -> Result<BTreeMap<String, Vec<Files>>> {
    let mut found: BTreeMap<String, Vec<Files>> = BTreeMap::new();
    for source in sources {
        let models = if source.is_dir() { repository(source)? } else { vec![single(source)?] };
        for (name, files) in models {
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
                let cause = format!(
                    "the name {name:?} cannot be part of an address: use letters, digits, -, _ and ."
                );
                return Err(bad(source, cause));
            }
            if found.insert(name.clone(), files).is_some() {
                return Err(bad(source, format!("holds a second model {name}: rename one of them")));
            }
        }
    }
    Ok(found)
}

fn bad(path: &Path, cause: String) -> Error {
    Error::File { path: path.display().to_string(), cause, input: true }
}

/// A model that is a single file, with `NAME.toml` beside it.
fn single(path: &Path) -> Result<(String, Vec<Files>)> {
    if !path.is_file() {
        return Err(bad(
            path,
            "is neither a model file nor a repository: give NAME.onnx, or a folder".to_owned(),
        ));
    }
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let config = Some(path.with_extension("toml")).filter(|config| config.is_file());
    Ok((name, vec![Files { version: 1, model: path.to_owned(), config }]))
}

/// The models of a repository, `NAME/VERSION/model.onnx`.
fn repository(folder: &Path) -> Result<Vec<(String, Vec<Files>)>> {
    let mut models = Vec::new();
    for (name, path) in folders(folder)? {
        let mut versions = Vec::new();
        for (version, path) in folders(&path)? {
            let (Ok(version), model) = (version.parse::<u64>(), path.join(MODEL)) else { continue };
            if !model.is_file() {
                continue;
            }
            let configs = [path.join(CONFIG), path.with_file_name(CONFIG)];
            let config = configs.into_iter().find(|config| config.is_file());
            versions.push(Files { version, model, config });
        }
        versions.sort_by_key(|files| files.version);
        if let Some(pair) = versions.windows(2).find(|pair| pair[0].version == pair[1].version) {
            return Err(bad(&path, format!("holds version {} twice", pair[0].version)));
        }
        if !versions.is_empty() {
            models.push((name, versions));
        }
    }
    if models.is_empty() {
        return Err(bad(folder, format!("holds no model: put one at NAME/1/{MODEL}")));
    }
    Ok(models)
}

/// Names and paths of the folders in a folder, hidden ones excepted.
fn folders(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let unreadable = |source| Error::Io {
        path: folder.display().to_string(),
        cause: "could not be listed",
        source,
        input: true,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn put(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn repositories_and_single_files_are_found() {
        let folder = tempfile::tempdir().unwrap();
        put(
            folder.path(),
            &[
                "repo/a/1/model.onnx",
                "repo/a/10/model.onnx",
                "repo/a/10/model.toml",
                "repo/a/model.toml",
                "repo/a/notes/model.onnx",
                "repo/b/2/model.onnx",
                "repo/b/3/other.onnx",
                "repo/.git/1/model.onnx",
                "single.onnx",
                "single.toml",
            ],
        );
        let found = scan(&[folder.path().join("repo"), folder.path().join("single.onnx")]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "single"]);
        let of = |name: &str| found[name].iter().map(|f| (f.version, f.config.clone())).collect::<Vec<_>>();
        let path = |file: &str| Some(folder.path().join(file));
        assert_eq!(of("a"), [(1, path("repo/a/model.toml")), (10, path("repo/a/10/model.toml"))]);
        assert_eq!(of("b"), [(2, None)]);
        assert_eq!(of("single"), [(1, path("single.toml"))]);
    }

    #[test]
    fn what_is_no_repository_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        put(
            folder.path(),
            &[
                "empty/readme",
                "twice/a/1/model.onnx",
                "twice/a/01/model.onnx",
                "odd/a b/1/model.onnx",
                "x.onnx",
                "y/x/1/model.onnx",
            ],
        );
        let rows: [(Vec<PathBuf>, &str); 5] = [
            (vec![at("missing.onnx")], "neither a model file nor a repository"),
            (vec![at("empty")], "holds no model: put one at NAME/1/model.onnx"),
            (vec![at("twice")], "holds version 1 twice"),
            (vec![at("odd")], "\"a b\" cannot be part of an address"),
            (vec![at("x.onnx"), at("y")], "a second model x"),
        ];
        for (sources, part) in rows {
            let error = scan(&sources).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
