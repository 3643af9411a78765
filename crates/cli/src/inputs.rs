//! The inputs of `run`: a model, and one or several files for each of its inputs.

use std::path::PathBuf;

use clap::Args;
use fcdcc::files::Input;
use fcdcc::model::{InputInfo, InputShape, Model, Tensor};
use fcdcc::{Error, Result};

use super::Console;
use super::arrays::{self, Source};
use super::content::{self, Content, HEAD};
use super::ledger::Ledger;
use super::picture::PictureArgs;

/// The model and its inputs.
#[derive(Args)]
pub(crate) struct InputArgs {
    /// The model
    #[arg(value_name = "MODEL.onnx")]
    pub(crate) model: PathBuf,
    /// A .npy or .npz array; or pictures (JPEG, PNG, WebP, BMP, TIFF), which make one batch; - for standard input;
    /// NAME=FILE where the model has several inputs
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    input: Vec<String>,
    /// Shape of an input, where the file leaves it open or to override it: [NAME=]SIZE,SIZE,... (may be repeated)
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<String>,
    #[command(flatten)]
    picture: PictureArgs,
}

impl InputArgs {
    /// Loads the model with the given shapes. Enters all files to be read, now or later, in `ledger`.
    pub(crate) fn model(&self, ledger: &mut Ledger) -> Result<Model> {
        ledger.input("the model", &self.model)?;
        let mut model = Model::load(&self.model)?;
        for path in model.data_files() {
            ledger.input("the model's data", path)?;
        }
        for shape in &self.shape {
            let (name, sizes) = shape_of(shape, &model)?;
            model = model.with_input_shape(&name, &sizes)?;
        }
        for file in assign(&self.input, model.inputs())?.iter().flatten() {
            ledger.input("--input", file)?;
        }
        Ok(model)
    }

    /// Fixes every shape of the model and reads its inputs in order, for each run. A model with one input and a fixed batch
    /// is run as often as the data need it.
    pub(crate) fn read(&self, mut model: Model) -> Result<(Model, Vec<Vec<Tensor>>)> {
        let files = assign(&self.input, model.inputs())?;
        let mut inputs = Vec::with_capacity(files.len());
        for (info, files) in model.inputs().iter().zip(files) {
            inputs.push(self.read_input(info, &files)?);
        }
        if let ([info], [data]) = (model.inputs(), inputs.as_slice())
            && let Some(batch) = pieces_of(info, data.shape())
        {
            let batches = data.chunks(batch).into_iter().map(|piece| vec![piece]).collect();
            return Ok((model, batches));
        }
        for (info, tensor) in model.inputs().to_vec().iter().zip(&inputs) {
            if !info.admits(tensor.shape()) {
                return Err(Error::mismatch(
                    format!("shape of input {}", info.name),
                    format!("{:?}", tensor.shape()),
                    info.described.as_str(),
                    "give data of that shape, or, where the model can be run for another, say so with --shape",
                ));
            }
            // An array without elements can only be a parameter.
            if info.fixed_shape().is_none() && !tensor.shape().contains(&0) {
                model = model.with_input_shape(&info.name, tensor.shape())?;
            }
        }
        Ok((model, vec![inputs]))
    }

    /// Makes inputs on which shapes or branches depend constants of the model, and says so: small arrays of integers and, if these
    /// do not suffice, of floats. Gives back the model and the other inputs.
    pub(crate) fn fix(
        model: Model,
        mut batches: Vec<Vec<Tensor>>,
        console: Console,
    ) -> (Model, Vec<Vec<Tensor>>) {
        let is_small = |tensor: &Tensor| {
            tensor.shape().len() <= 1 && tensor.shape().iter().product::<usize>() <= MOST_PARAMETERS
        };
        let [inputs] = batches.as_mut_slice() else { return (model, batches) };
        // Inferring all shapes takes a while, so it is tried only where an input may be a parameter.
        if !inputs.iter().any(is_small) {
            return (model, batches);
        }
        // A model that runs as it is may still run better where its branches are known.
        let runs = model.output_infos().is_ok();
        if runs && !model.has_branches() {
            return (model, batches);
        }
        for floats in [false, true].into_iter().take(if runs { 1 } else { 2 }) {
            let is_parameter =
                |tensor: &Tensor| is_small(tensor) && (floats || !tensor.dtype().contains('f'));
            let mut names = Vec::new();
            let fixed =
                model.inputs().iter().zip(&*inputs).filter(|(_, tensor)| is_parameter(tensor)).try_fold(
                    model.clone(),
                    |model, (info, tensor)| {
                        names.push(info.name.clone());
                        model.with_input_value(&info.name, tensor)
                    },
                );
            if let Ok(fixed) = fixed
                && !names.is_empty()
                && fixed.output_infos().is_ok()
            {
                let names = names.join(", ");
                console.notice(format_args!(
                    "shapes or branches depend on {names}: the model is prepared for the values given"
                ));
                inputs.retain(|tensor| !is_parameter(tensor));
                return (fixed, batches);
            }
        }
        (model, batches)
    }

    /// The pictures of a model with one input, in order; none where a single picture or array is given.
    pub(crate) fn pictures(&self, model: &Model) -> Result<Vec<String>> {
        let files = assign(&self.input, model.inputs())?;
        let [files] = files.as_slice() else { return Ok(Vec::new()) };
        Ok(files.iter().map(|file| file.display().to_string()).collect())
    }

    fn read_input(&self, info: &InputInfo, files: &[PathBuf]) -> Result<Tensor> {
        let first = files.first().expect("every input was assigned a file");
        let mut first = Input::open(first)?;
        let content = content::of(first.head(HEAD)?);
        match (content, &files[1..]) {
            (Content::Picture(_), _) => Ok(self.picture.read(info, first, files)?.into()),
            (content @ (Content::Npy | Content::Zip), []) => {
                arrays::read_tensor(Source::new(first, content, &[info.name.as_str()]))
            }
            (Content::Npy | Content::Zip, _) => Err(Error::mismatch(
                format!("number of files for input {}", info.name),
                files.len(),
                "one .npy or .npz array, or any number of pictures",
                "put the arrays into one file, along the batch axis",
            )),
            (Content::Other(what), _) => Err(Error::File {
                path: first.name().to_owned(),
                cause: format!(
                    "is neither an array nor a picture but {what}: give a .npy or .npz array, or a JPEG, PNG, WebP, BMP \
                     or TIFF picture"
                ),
                input: true,
            }),
        }
    }
}

/// Elements of an array that may hold sizes, axes, scales or flags.
const MOST_PARAMETERS: usize = 64;

/// The model's fixed batch size, if data of this shape are several batches.
fn pieces_of(info: &InputInfo, shape: &[usize]) -> Option<usize> {
    let own = info.fixed_shape()?;
    let ([batch, own @ ..], [count, rest @ ..]) = (own.as_slice(), shape) else { return None };
    (*batch > 0 && own == rest && count > batch && count.is_multiple_of(*batch)).then_some(*batch)
}

/// Parses `[NAME=]SIZE,SIZE,...` of an input of `model`.
pub(crate) fn shape_of(text: &str, model: &Model) -> Result<(String, Vec<usize>)> {
    let described = |input: &InputInfo| format!("{} {}", input.name, input.described);
    let inputs = model.inputs();
    let (name, sizes) = parts_of(text);
    let of_all = || inputs.iter().map(described).collect::<Vec<_>>().join(", ");
    let name = match (name, inputs) {
        (Some(name), _) => name,
        (None, [only]) => &only.name,
        (None, _) => {
            let help = format!("the model has inputs {}: write --shape NAME=SIZES", of_all());
            return Err(Error::invalid("shape (--shape)", format!("{text:?}"), help));
        }
    };
    let sizes = sizes_of(sizes).ok_or_else(|| {
        let axes = inputs.iter().find(|input| input.name == name).map_or_else(of_all, described);
        let help = format!("write a size for each axis of {axes}, such as 1,3,224,224 or NAME=1,3,224,224");
        Error::invalid("shape (--shape)", format!("{text:?}"), help)
    })?;
    Ok((name.to_owned(), sizes))
}

/// Parses `[NAME=]SIZE,SIZE,...` of a model that is not loaded yet.
pub(crate) fn shape_before(text: &str) -> Result<InputShape> {
    let (name, sizes) = parts_of(text);
    let sizes = sizes_of(sizes).ok_or_else(|| {
        Error::invalid("shape (--shape)", format!("{text:?}"), "write it as 1,3,224,224 or NAME=1,3,224,224")
    })?;
    Ok(InputShape { input: name.map(str::to_owned), sizes })
}

/// The name, if there is one, and the sizes.
fn parts_of(text: &str) -> (Option<&str>, &str) {
    text.rsplit_once('=').map_or((None, text), |(name, sizes)| (Some(name), sizes))
}

fn sizes_of(text: &str) -> Option<Vec<usize>> {
    text.split([',', 'x']).map(|size| size.trim().parse().ok()).collect()
}

/// Assigns the given files to the inputs.
fn assign(given: &[String], inputs: &[InputInfo]) -> Result<Vec<Vec<PathBuf>>> {
    let mut files = vec![Vec::new(); inputs.len()];
    let mut unnamed = Vec::new();
    for text in given {
        let named = text.split_once('=').and_then(|(name, file)| {
            let index = inputs.iter().position(|input| input.name == name)?;
            Some((index, PathBuf::from(file)))
        });
        match named {
            Some((index, file)) => files[index].push(file),
            None => unnamed.push(PathBuf::from(text)),
        }
    }
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    if let [only] = files.as_mut_slice() {
        only.extend(unnamed);
    } else if !unnamed.is_empty() {
        let first = unnamed[0].display().to_string();
        // The text is neither an input's name nor a single file: the message covers both readings.
        let help = "name each file's input: --input NAME=FILE";
        return Err(Error::mismatch("input", first, names.join(" or "), help));
    }
    match files.iter().position(Vec::is_empty) {
        None => Ok(files),
        Some(missing) => Err(Error::mismatch(
            "number of inputs given",
            files.iter().filter(|f| !f.is_empty()).count(),
            format!("{} ({})", names.len(), names.join(", ")),
            format!("give --input {}=FILE as well", names[missing]),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn inputs(names: &[&str]) -> Vec<InputInfo> {
        let info = |name: &&str| InputInfo {
            name: (*name).to_owned(),
            dtype: "f32".to_owned(),
            shape: None,
            described: "[...]".to_owned(),
        };
        names.iter().map(info).collect()
    }

    fn given(files: &[&str]) -> Vec<String> {
        files.iter().map(|f| (*f).to_owned()).collect()
    }

    #[test]
    fn files_find_their_inputs() {
        let one = assign(&given(&["a=b.npy", "c.png"]), &inputs(&["x"])).unwrap();
        assert_eq!(one, [[PathBuf::from("a=b.npy"), PathBuf::from("c.png")]]);
        let two = assign(&given(&["right=r.npy", "left=l=1.npy"]), &inputs(&["left", "right"])).unwrap();
        assert_eq!(two, [[PathBuf::from("l=1.npy")], [PathBuf::from("r.npy")]]);
        let missing = assign(&given(&["left=l.npy"]), &inputs(&["left", "right"])).unwrap_err().to_string();
        assert!(
            missing.contains("is 1 where 2 (left, right)") && missing.contains("right=FILE"),
            "{missing}"
        );
        let unknown = assign(&given(&["l.npy"]), &inputs(&["left", "right"])).unwrap_err().to_string();
        assert!(unknown.contains("l.npy where left or right"), "{unknown}");
    }
}
