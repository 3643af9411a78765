//! Pictures as model input: fits them to the input's size, scales, normalises, and arranges the axes.

use std::path::PathBuf;

use fcdcc::files::Input;
use fcdcc::model::InputInfo;
use fcdcc::{Error, Result};
use ndarray::{Array4, ArrayD};

use super::content::{self, Content, Format, HEAD};
use super::decode::{MOST_SIDE, bad, decode};
pub(crate) use super::preset::PictureArgs;
use super::preset::{Color, Fit, PixelLayout, Settings};
use super::raster::Raster;
use fcdcc::memory;

/// Maximum bytes of a file.
const MOST_FILE_BYTES: u64 = 1 << 29;

/// Channels, height, width and the order of the axes.
struct Target {
    channels: usize,
    size: [Option<usize>; 2],
    last: bool,
}

impl PictureArgs {
    /// One batch of all `pictures` for `input`, whose open sizes are taken from them. `first`: the first picture, opened.
    ///
    /// # Errors
    /// [`Error::File`] for a picture that cannot be read or needs too much memory, [`Error::Mismatch`] for an input that
    /// does not accept such pictures.
    pub(crate) fn read(&self, input: &InputInfo, first: Input, pictures: &[PathBuf]) -> Result<ArrayD<f32>> {
        let mut first = Some(first);
        let decoded =
            pictures.iter().map(|path| read_file(first.take().map_or_else(|| Input::open(path), Ok)?));
        self.batch(input, pictures.len(), decoded)
    }

    /// A batch of one picture, whose file is in memory and is called `name` in messages.
    ///
    /// # Errors
    /// Those of [`PictureArgs::read`].
    #[cfg(feature = "serve")]
    pub(crate) fn read_bytes(&self, input: &InputInfo, name: &str, bytes: Vec<u8>) -> Result<ArrayD<f32>> {
        let format = format_of(name, &bytes[..bytes.len().min(HEAD)])?;
        self.batch(input, 1, std::iter::once(decode(name, &bytes, format)))
    }

    /// One batch of `count` pictures, which are decoded one at a time.
    fn batch(
        &self,
        input: &InputInfo,
        count: usize,
        pictures: impl Iterator<Item = Result<Raster>>,
    ) -> Result<ArrayD<f32>> {
        let settings = self.settings();
        let target = target(settings.layout, input, count)?;
        settings.check(target.channels)?;
        let mut batch: Option<Array4<f32>> = None;
        for (index, picture) in pictures.enumerate() {
            let picture = picture?;
            let [height, width] = match &batch {
                Some(batch) => [batch.shape()[2], batch.shape()[3]],
                None => {
                    [target.size[0].unwrap_or(picture.height()), target.size[1].unwrap_or(picture.width())]
                }
            };
            let fitted = fitted(&settings, picture, checked(height)?, checked(width)?);
            let shape = [count, target.channels, height, width];
            let batch = if let Some(batch) = &mut batch {
                batch
            } else {
                let bytes = shape.iter().fold(4u64, |product, size| product.saturating_mul(*size as u64));
                memory::require_all(&format!("input {} of shape {shape:?}", input.name), bytes)?;
                batch.insert(Array4::zeros(shape))
            };
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let pixel = fitted.at(x, y);
                for channel in 0..target.channels {
                    let value = match (target.channels, settings.color) {
                        // The luma of ITU-R BT.601, the usual conversion to grey.
                        (1, _) => 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2],
                        (_, Color::Rgb) => pixel[channel],
                        (_, Color::Bgr) => pixel[2 - channel],
                    };
                    batch[[index, channel, y, x]] =
                        (value * settings.range - settings.mean.at(channel)) / settings.std.at(channel);
                }
            }
        }
        let batch = batch.ok_or_else(|| Error::invalid("number of pictures", 0, "name at least one"))?;
        if !target.last {
            return Ok(batch.into_dyn());
        }
        Ok(batch.permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned().into_dyn())
    }
}

fn target(layout: PixelLayout, input: &InputInfo, count: usize) -> Result<Target> {
    let not = |help: &str| {
        Err(Error::mismatch(
            format!("input {} for pictures", input.name),
            input.described.clone(),
            "[batch, 1 or 3, height, width] or [batch, height, width, 1 or 3]",
            help,
        ))
    };
    let Some([batch, a, b, c]) = input.shape.as_deref() else {
        return not("convert the pictures to a .npy array of the model's shape");
    };
    // A model with a smaller batch is run several times.
    if let Some(batch) = batch.filter(|b| !count.is_multiple_of(*b)) {
        let expected = format!("a multiple of {batch} (input {} is {})", input.name, input.described);
        let help = "give as many, or another --shape if the model allows it";
        return Err(Error::mismatch("number of pictures", count, expected, help));
    }
    let color = |channels: &Option<usize>| matches!(channels, Some(1 | 3));
    let last = match layout {
        PixelLayout::Auto => !color(a) && color(c),
        layout => layout == PixelLayout::Nhwc,
    };
    let (channels, size) = if last { (c, [*a, *b]) } else { (a, [*b, *c]) };
    match channels {
        Some(channels @ (1 | 3)) => Ok(Target { channels: *channels, size, last }),
        _ => not("name the order of the axes with --layout, or give a .npy array"),
    }
}

fn fitted(settings: &Settings, picture: Raster, height: usize, width: usize) -> Raster {
    let (w, h) = (picture.width(), picture.height());
    if (w, h) == (width, height) && settings.fit != Fit::Center {
        return picture;
    }
    let (across, down) = (width as f64 / w as f64, height as f64 / h as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both sides are bounded")]
    let side = |own: usize, scale: f64| ((own as f64 * scale).round() as usize).max(1);
    match settings.fit {
        Fit::Stretch => picture.scaled(width, height),
        Fit::Crop => {
            let scale = across.max(down);
            let (sw, sh) = (side(w, scale).max(width), side(h, scale).max(height));
            picture.scaled(sw, sh).cut((sw - width) / 2, (sh - height) / 2, width, height)
        }
        Fit::Center => {
            let (sw, sh) = center_sides((w, h), (width, height));
            // Half a pixel is rounded to the even one, as Python does.
            let start = |rest: usize| rest / 2 + usize::from(rest % 4 == 3);
            picture.scaled(sw, sh).cut(start(sw - width), start(sh - height), width, height)
        }
        Fit::Pad => {
            let scale = across.min(down);
            let (sw, sh) = (side(w, scale).min(width), side(h, scale).min(height));
            let place = ((width - sw) / 2, (height - sh) / 2);
            picture.scaled(sw, sh).padded(place, (width, height), settings.fill)
        }
    }
}

/// The sides to which [`Fit::Center`] scales a picture of `own` sides for an input of `target` sides (width, height): the
/// side that decides becomes 256/224 of the input's, the other one keeps the proportions, rounded down.
fn center_sides((w, h): (usize, usize), (width, height): (usize, usize)) -> (usize, usize) {
    let inner = |side: usize| (side * 256 + 112) / 224;
    // The input is wider than the picture: the width decides.
    if width * h >= height * w {
        let scaled = inner(width);
        (scaled.max(width), (h * scaled / w).max(height))
    } else {
        let scaled = inner(height);
        ((w * scaled / h).max(width), scaled.max(height))
    }
}

/// `size` if pictures can be fitted to it.
fn checked(size: usize) -> Result<usize> {
    let fits = Some(size).filter(|size| (1..=MOST_SIDE).contains(size));
    fits.ok_or_else(|| {
        Error::invalid(
            "side of the input",
            size,
            format!("pictures are fitted to 1 to {MOST_SIDE} pixels a side"),
        )
    })
}

/// Reads and decodes a picture file.
fn read_file(mut input: Input) -> Result<Raster> {
    let name = input.name().to_owned();
    let format = format_of(&name, input.head(HEAD)?)?;
    decode(&name, &input.into_bytes(MOST_FILE_BYTES, "save it smaller")?, format)
}

/// The format of a file with these first bytes.
fn format_of(name: &str, head: &[u8]) -> Result<Format> {
    match content::of(head) {
        Content::Picture(format) => Ok(format),
        other => {
            let what = other.describe();
            let help = "give a JPEG, PNG, WebP, BMP or TIFF file";
            Err(bad(name, format!("is not a picture that can be decoded but {what}: {help}")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests;
