//! Tensors that an ONNX file stores in other files.
//!
//! Relevant if you want to know which files a model may read. A location is given by the *file*, so it may only name
//! something below the folder of the model. A link is made by the *user*, so it may lead out of that folder to the
//! places where a model cache stores files: the folder that really contains the model, or a folder `blobs` beside the
//! model's folder or beside the `snapshots` folder around it (Hugging Face).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto};
use tract_onnx::prelude::TractResult;

/// The external files of a model.
pub(super) struct External {
    /// The folder in which tract looks: the root, which the locations in the model are now relative to.
    pub(super) root: String,
    /// Every file once, with links resolved.
    pub(super) files: Vec<PathBuf>,
}

/// Finds the files of external tensors and rewrites their locations relative to the root, so that tract, which follows
/// no link out of its folder, finds them. `None` if there are none.
///
/// `report` gets a description, with the tensor's name, of the first problem at each location: a location outside the
/// folder, a link to elsewhere, or a file that is missing, too short or not a regular file. The model must then not be
/// parsed.
pub(super) fn settle(
    proto: &mut ModelProto,
    model: Option<&Path>,
    report: &mut dyn FnMut(&str),
) -> Option<External> {
    let mut files: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut unfit: BTreeSet<String> = BTreeSet::new();
    let mut home = None;
    let mut root = None;
    let mut each = |tensor: &mut TensorProto| -> Result<(), String> {
        if !is_external(tensor) {
            return Ok(());
        }
        let place = location(tensor).unwrap_or_default().to_owned();
        match settle_one(tensor, model, &mut home, &mut files) {
            Ok(start) => root = Some(start),
            Err(why) => {
                if unfit.insert(place) {
                    report(&why);
                }
            }
        }
        Ok(())
    };
    if let Some(graph) = proto.graph.as_mut() {
        // Problems were reported; the visit itself does not fail.
        let _ = tensors(graph, &mut each);
    }
    root.map(|root| External { root, files: files.into_keys().collect() })
}

/// Rewrites the location of one external tensor, and gives the root that it is relative to.
fn settle_one(
    tensor: &mut TensorProto,
    model: Option<&Path>,
    home: &mut Option<Home>,
    files: &mut BTreeMap<PathBuf, u64>,
) -> Result<String, String> {
    let bad = |cause: String| format!("tensor {} is in a file of its own, and {cause}", tensor.name);
    let Some(model) = model else {
        return Err(bad("a model in memory has none beside it: load the model from its file".to_owned()));
    };
    let home: &Home = match home {
        Some(home) => home,
        None => home.insert(Home::of(model).map_err(bad)?),
    };
    let Some(entry) = tensor.external_data.iter_mut().find(|entry| entry.key == "location") else {
        return Err(bad("its location is missing: export the model again".to_owned()));
    };
    let path = home.find(&entry.value).map_err(bad)?;
    let known = files.get(&path).copied();
    let length = known.map_or_else(|| length(&path), Ok).map_err(bad)?;
    files.insert(path.clone(), length);
    let (start, below) = below_root(&path).map_err(bad)?;
    entry.value = below;
    fits(tensor, length)
        .map_err(|cause| format!("tensor {} is in {}, and {cause}", tensor.name, path.display()))?;
    Ok(start)
}

/// The location of an external tensor, as the file has it.
pub(super) fn location(tensor: &TensorProto) -> Option<&str> {
    tensor.external_data.iter().find(|entry| entry.key == "location").map(|entry| entry.value.as_str())
}

/// The bytes of the file at `location` of a model, if that file may be read.
pub(super) fn bytes_at(model: &Path, location: &str) -> Option<u64> {
    let path = Home::of(model).and_then(|home| home.find(location)).ok()?;
    length(&path).ok()
}

/// Whether the data of a tensor are in another file.
pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32) && tensor.raw_data.is_empty()
}

/// Visits every tensor of a graph and of the graphs inside it.
pub(super) fn tensors(
    graph: &mut GraphProto,
    each: &mut dyn FnMut(&mut TensorProto) -> Result<(), String>,
) -> Result<(), String> {
    for tensor in &mut graph.initializer {
        each(tensor)?;
    }
    for sparse in &mut graph.sparse_initializer {
        sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *each)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *each)?;
        for sparse in attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors) {
            sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *each)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            tensors(graph, each)?;
        }
    }
    Ok(())
}

/// The folders that may contain the files of a model.
struct Home {
    /// The folder of the model, with links resolved.
    folder: PathBuf,
    /// Folders that links may lead to.
    allowed: Vec<PathBuf>,
}

impl Home {
    fn of(model: &Path) -> Result<Self, String> {
        let unknown = |e: std::io::Error| format!("the model's folder cannot be read: {e}");
        let beside = match model.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = beside.canonicalize().map_err(unknown)?;
        let mut allowed = vec![folder.clone()];
        // The folder that really contains the model, if its path is a link.
        allowed.extend(model.canonicalize().map_err(unknown)?.parent().map(Path::to_owned));
        let snapshots =
            folder.ancestors().filter(|above| above.file_name().is_some_and(|n| n == "snapshots"));
        let beside = std::iter::once(folder.as_path()).chain(snapshots);
        let blobs = beside.filter_map(|place| place.parent().map(|above| above.join("blobs")));
        allowed.extend(blobs.filter(|blobs| blobs.is_dir() && !blobs.is_symlink()));
        Ok(Self { folder, allowed })
    }

    /// The file at `location`, with links resolved.
    fn find(&self, location: &str) -> Result<PathBuf, String> {
        let within = Path::new(location);
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !within.components().all(inside) {
            return Err(format!(
                "its location {location:?} is outside the model's folder {}: put the file beside the model, and export \
                 the model with a plain file name",
                self.folder.display()
            ));
        }
        let path = self.folder.join(within).canonicalize().map_err(|e| {
            format!(
                "{location:?} in {} cannot be read: {e}: put the file beside the model",
                self.folder.display()
            )
        })?;
        if self.allowed.iter().any(|allowed| path.starts_with(allowed)) {
            return Ok(path);
        }
        Err(format!(
            "{location:?} is a link to {}, outside the model's folder {} and its cache: put the file beside the model",
            path.display(),
            self.folder.display()
        ))
    }
}

fn length(path: &Path) -> Result<u64, String> {
    let about = path.metadata().map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
    if about.is_file() {
        return Ok(about.len());
    }
    Err(format!("{} is no regular file: put the file beside the model", path.display()))
}

/// The root of a path without links, and the rest of the path.
fn below_root(path: &Path) -> Result<(String, String), String> {
    let root = path.ancestors().last().unwrap_or(path);
    let below = path.strip_prefix(root).unwrap_or(path);
    match (root.to_str(), below.to_str()) {
        (Some(root), Some(below)) => Ok((root.to_owned(), below.to_owned())),
        _ => Err(format!("{} has a name that is no text: give it a plain one", path.display())),
    }
}

/// Whether the part needed by a tensor is within a file of `length` bytes.
fn fits(tensor: &TensorProto, length: u64) -> Result<(), String> {
    let offset = number(tensor, "offset")?.unwrap_or(0);
    let end = number(tensor, "length")?.map_or(Some(offset), |own| offset.checked_add(own));
    match end {
        Some(end) if end <= length => Ok(()),
        end => Err(format!(
            "needs its bytes up to {} where it has {length}: the file is cut short; fetch it again",
            end.map_or_else(|| "beyond 2^64".to_owned(), |end| end.to_string())
        )),
    }
}

/// A number among the entries that describe the place of a tensor.
fn number(tensor: &TensorProto, key: &str) -> Result<Option<u64>, String> {
    let entry = tensor.external_data.iter().find(|entry| entry.key == key);
    let parse = |text: &String| {
        text.parse().map_err(|_| format!("its {key} is {text:?}, no number: export the model again"))
    };
    entry.map(|entry| parse(&entry.value)).transpose()
}

/// Reads the `bytes` of a tensor, whose place [`settle`] has checked, into the tensor.
///
/// # Errors
/// A description with the tensor's name, for another number of bytes or a file that cannot be read.
pub(super) fn take_in(tensor: &mut TensorProto, root: &str, bytes: u64) -> Result<(), String> {
    let location = tensor.external_data.iter().find(|entry| entry.key == "location");
    let path = Path::new(root).join(location.map_or("", |entry| &entry.value));
    let bad = |cause: String| format!("tensor {} is in {}, and {cause}", tensor.name, path.display());
    let offset = number(tensor, "offset").map_err(bad)?.unwrap_or(0);
    let own = number(tensor, "length").map_err(bad)?.unwrap_or(bytes);
    if own != bytes {
        return Err(bad(format!(
            "has {own} bytes there where its shape {:?} needs {bytes}: export the model again",
            tensor.dims
        )));
    }
    let read = || -> TractResult<Vec<u8>> {
        let mut data = Vec::new();
        Resolver.read_bytes_from_path(
            &mut data,
            &path,
            usize::try_from(offset)?,
            Some(usize::try_from(bytes)?),
        )?;
        Ok(data)
    };
    tensor.raw_data =
        read().map_err(|e| bad(format!("its {bytes} bytes cannot be read: {e:#}: fetch it again")))?;
    tensor.data_location = None;
    tensor.external_data.clear();
    Ok(())
}

/// Reads a part of a file for tract.
pub(super) struct Resolver;

impl ModelDataResolver for Resolver {
    fn read_bytes_from_path(
        &self,
        buffer: &mut Vec<u8>,
        path: &Path,
        offset: usize,
        length: Option<usize>,
    ) -> TractResult<()> {
        let mut file = File::open(path)?;
        let rest = file.metadata()?.len().saturating_sub(offset as u64);
        let length = length.map_or(rest, |length| length as u64);
        // `settle` has checked the length; a file that changed since then gives an error, not a panic.
        if length > rest {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        file.seek(SeekFrom::Start(offset as u64))?;
        buffer.try_reserve_exact(usize::try_from(length)?)?;
        if file.take(length).read_to_end(buffer)? as u64 != length {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }
}
