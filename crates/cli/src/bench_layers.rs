//! The layers that `bench` measures: of well-known networks, or from a file.

use std::path::Path;

use fcdcc::{ConvParams, ConvShape, Error, Result};
use fcdcc_bench::layers::{NamedLayer, networks, resolve};
use fcdcc_bench::with_flags;
use serde::Deserialize;

/// The default layers of `fcdcc bench`: a fast one of each network.
pub(crate) const DEFAULT: &str = "lenet5/conv2,alexnet/conv3,vgg16/conv5_1,resnet50/conv4_3x3";

/// `[[layer]]` tables.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerFile {
    #[serde(default)]
    layer: Vec<LayerEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerEntry {
    name: String,
    input: Vec<usize>,
    weight: Vec<usize>,
    #[serde(default)]
    stride: Axes,
    #[serde(default)]
    padding: Axes,
    #[serde(default)]
    dilation: Axes,
    #[serde(default = "one")]
    groups: usize,
}

/// One number, or one per axis.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Axes {
    All(usize),
    Each(Vec<usize>),
}

impl Default for Axes {
    fn default() -> Self {
        Self::Each(Vec::new())
    }
}

impl From<Axes> for Vec<usize> {
    fn from(axes: Axes) -> Self {
        match axes {
            Axes::All(size) => vec![size],
            Axes::Each(sizes) => sizes,
        }
    }
}

fn one() -> usize {
    1
}

/// The layers of `--layers`: networks, `network/layer`, files.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<NamedLayer>> {
    let mut layers = Vec::new();
    for name in names {
        let of = name.split_once('/').map_or(name.as_str(), |(network, _)| network);
        layers.extend(if networks().contains(&of) { resolve(name)? } else { from_file(Path::new(name))? });
    }
    Ok(layers)
}

/// The files in `--layers`.
pub(crate) fn files(names: &[String]) -> impl Iterator<Item = &Path> {
    let network =
        |name: &str| networks().contains(&name.split_once('/').map_or(name, |(network, _)| network));
    names.iter().filter(move |name| !network(name)).map(Path::new)
}

fn from_file(path: &Path) -> Result<Vec<NamedLayer>> {
    let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
    let help = |cause: String| {
        bad(format!(
            "{cause}; --layers takes a TOML file, a network ({}) or network/layer",
            networks().join(", ")
        ))
    };
    let text = fcdcc::files::read_text(path).map_err(|error| match error {
        Error::File { cause, .. } => help(cause),
        Error::Io { cause, source, .. } => help(format!("{cause}: {source}")),
        other => other,
    })?;
    let file: LayerFile = toml::from_str(&text).map_err(|e| {
        let line =
            text.bytes().take(e.span().map_or(0, |span| span.start)).filter(|b| *b == b'\n').count() + 1;
        bad(format!("is not a layer file, line {line}: {}", e.message()))
    })?;
    if file.layer.is_empty() {
        return Err(bad("describes no layer: add a [[layer]] table with name, input and weight".to_owned()));
    }
    file.layer
        .into_iter()
        .map(|entry| {
            let LayerEntry { name, input, weight, stride, padding, dilation, groups } = entry;
            let params = ConvParams {
                stride: stride.into(),
                padding: padding.into(),
                dilation: dilation.into(),
                groups,
            };
            let shape = ConvShape::new(&input, &weight, &params)
                .map_err(|e| bad(format!("layer {name:?}: {}", with_flags(e))))?;
            Ok(NamedLayer { name, shape, count: 1 })
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn names(list: &str) -> Result<Vec<String>> {
        let list: Vec<String> = list.split(',').map(str::to_owned).collect();
        Ok(chosen(&list)?.into_iter().map(|l| l.name).collect())
    }

    #[test]
    fn networks_layers_and_files_can_be_mixed() {
        assert_eq!(names(DEFAULT).unwrap().len(), 4);
        assert_eq!(names("lenet5,vgg16/conv1_1").unwrap().len(), 4);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layers.toml");
        let file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            names(path.to_str().unwrap())
        };
        let good = "[[layer]]\nname = 'a'\ninput = [1, 3, 8, 8]\nweight = [4, 3, 3, 3]\npadding = 1\nstride = [2, 1]\n";
        assert_eq!(file(good).unwrap(), ["a"]);
        for (text, says) in [
            ("", "no layer"),
            ("[[layer]]\nname = 'a'\n", "input"),
            ("[[layer]]\nname = 'a'\ninput = 3\nweight = []\n", "line 3"),
            (&good.replace("[4, 3,", "[4, 2,"), "\"a\": channels of the weight"),
            (&good.replace("stride", "strides"), "strides"),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(error.contains("layers.toml") && error.contains(says), "{error}");
        }
        assert!(names("missing.toml").unwrap_err().to_string().contains("missing.toml"));
        assert!(names("vgg16/conv9").unwrap_err().to_string().contains("vgg16/conv5_1"));
    }
}
