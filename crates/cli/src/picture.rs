//! Pictures as model input: decodes, fits to the input's size, scales, normalises, and arranges the axes.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fcdcc::files::Input;
use fcdcc::model::InputInfo;
use fcdcc::{Error, Result};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Rgb, Rgb32FImage, imageops};
use ndarray::{Array4, ArrayD};

use super::content::{self, Content, HEAD};
pub(crate) use super::preset::PictureArgs;
use super::preset::{Color, Fit, PixelLayout, Settings};
use fcdcc::memory;

/// Maximum side of a decoded picture: a file of a few kilobytes may claim billions of pixels.
const MOST_SIDE: u32 = 32_768;
/// Maximum pixels of a picture: 8192 x 8192. As floats they take 12 bytes each.
const MOST_PIXELS: u64 = 1 << 26;
/// Maximum bytes of a file.
const MOST_FILE_BYTES: u64 = 1 << 29;
/// Maximum bytes that a decoder may allocate besides the picture itself.
const MOST_DECODER_BYTES: u64 = 1 << 30;

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
        let decoded = pictures.iter().map(|path| decode(first.take().map_or_else(|| Input::open(path), Ok)?));
        self.batch(input, pictures.len(), decoded)
    }

    /// A batch of one picture, whose file is in memory and is called `name` in messages.
    ///
    /// # Errors
    /// Those of [`PictureArgs::read`].
    #[cfg(feature = "serve")]
    pub(crate) fn read_bytes(&self, input: &InputInfo, name: &str, bytes: Vec<u8>) -> Result<ArrayD<f32>> {
        let format = format_of(name, &bytes[..bytes.len().min(HEAD)])?;
        self.batch(input, 1, std::iter::once(decode_named(name, bytes, format)))
    }

    /// One batch of `count` pictures, which are decoded one at a time.
    fn batch(
        &self,
        input: &InputInfo,
        count: usize,
        pictures: impl Iterator<Item = Result<Rgb32FImage>>,
    ) -> Result<ArrayD<f32>> {
        let settings = self.settings();
        let target = target(settings.layout, input, count)?;
        settings.check(target.channels)?;
        let mut batch: Option<Array4<f32>> = None;
        for (index, picture) in pictures.enumerate() {
            let picture = picture?;
            let [height, width] = match &batch {
                Some(batch) => [batch.shape()[2], batch.shape()[3]],
                None => [
                    target.size[0].unwrap_or(picture.height() as usize),
                    target.size[1].unwrap_or(picture.width() as usize),
                ],
            };
            let fitted = fitted(&settings, &picture, u32_of(height)?, u32_of(width)?);
            let shape = [count, target.channels, height, width];
            let batch = if let Some(batch) = &mut batch {
                batch
            } else {
                let bytes = shape.iter().fold(4u64, |product, size| product.saturating_mul(*size as u64));
                memory::require_all(&format!("input {} of shape {shape:?}", input.name), bytes)?;
                batch.insert(Array4::zeros(shape))
            };
            for (x, y, pixel) in fitted.enumerate_pixels() {
                for channel in 0..target.channels {
                    let value = match (target.channels, settings.color) {
                        // The luma of ITU-R BT.601, the usual conversion to grey.
                        (1, _) => 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2],
                        (_, Color::Rgb) => pixel[channel],
                        (_, Color::Bgr) => pixel[2 - channel],
                    };
                    batch[[index, channel, y as usize, x as usize]] =
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

fn fitted(settings: &Settings, picture: &Rgb32FImage, height: u32, width: u32) -> Rgb32FImage {
    let (w, h) = picture.dimensions();
    if (w, h) == (width, height) && settings.fit != Fit::Center {
        return picture.clone();
    }
    let (across, down) = (f64::from(width) / f64::from(w), f64::from(height) / f64::from(h));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both sides are bounded")]
    let side = |own: u32, scale: f64| ((f64::from(own) * scale).round() as u32).max(1);
    match settings.fit {
        Fit::Stretch => imageops::resize(picture, width, height, FilterType::Triangle),
        Fit::Crop => {
            let scale = across.max(down);
            let (sw, sh) = (side(w, scale).max(width), side(h, scale).max(height));
            let scaled = imageops::resize(picture, sw, sh, FilterType::Triangle);
            imageops::crop_imm(&scaled, (sw - width) / 2, (sh - height) / 2, width, height).to_image()
        }
        Fit::Center => {
            let (sw, sh) = center_sides((w, h), (width, height));
            let scaled = imageops::resize(picture, sw, sh, FilterType::Triangle);
            // Half a pixel is rounded to the even one, as Python does.
            let start = |rest: u32| rest / 2 + u32::from(rest % 4 == 3);
            imageops::crop_imm(&scaled, start(sw - width), start(sh - height), width, height).to_image()
        }
        Fit::Pad => {
            let scale = across.min(down);
            let (sw, sh) = (side(w, scale).min(width), side(h, scale).min(height));
            let scaled = imageops::resize(picture, sw, sh, FilterType::Triangle);
            let mut padded = Rgb32FImage::from_pixel(width, height, Rgb([settings.fill; 3]));
            let (x, y) = ((width - sw) / 2, (height - sh) / 2);
            imageops::replace(&mut padded, &scaled, i64::from(x), i64::from(y));
            padded
        }
    }
}

/// The sides to which [`Fit::Center`] scales a picture of `own` sides for an input of `target` sides (width, height): the
/// side that decides becomes 256/224 of the input's, the other one keeps the proportions, rounded down.
fn center_sides((w, h): (u32, u32), (width, height): (u32, u32)) -> (u32, u32) {
    let inner = |side: u32| (u64::from(side) * 256 + 112) / 224;
    let other = |own: u32, scaled: u64, by: u32| u64::from(own) * scaled / u64::from(by);
    let narrow = |side: u64, least: u32| u32::try_from(side).unwrap_or(u32::MAX).max(least);
    // The input is wider than the picture: the width decides.
    if u64::from(width) * u64::from(h) >= u64::from(height) * u64::from(w) {
        let scaled = inner(width);
        (narrow(scaled, width), narrow(other(h, scaled, w), height))
    } else {
        let scaled = inner(height);
        (narrow(other(w, scaled, h), width), narrow(scaled, height))
    }
}

fn u32_of(size: usize) -> Result<u32> {
    u32::try_from(size).ok().filter(|s| *s <= MOST_SIDE).ok_or_else(|| {
        Error::invalid(
            "side of the input",
            size,
            format!("pictures are fitted to at most {MOST_SIDE} pixels a side"),
        )
    })
}

/// Decodes a picture and turns it upright by its orientation tag.
fn decode(mut input: Input) -> Result<Rgb32FImage> {
    let name = input.name().to_owned();
    let format = format_of(&name, input.head(HEAD)?)?;
    decode_named(&name, input.into_bytes(MOST_FILE_BYTES, "save it smaller")?, format)
}

fn bad(name: &str, cause: String) -> Error {
    Error::File { path: name.to_owned(), cause, input: true }
}

/// The format of a file with these first bytes.
fn format_of(name: &str, head: &[u8]) -> Result<ImageFormat> {
    match content::of(head) {
        Content::Picture(format) => Ok(format),
        other => {
            let what = other.describe();
            let help = "give a JPEG, PNG, WebP, BMP or TIFF file";
            Err(bad(name, format!("is not a picture that can be decoded but {what}: {help}")))
        }
    }
}

fn decode_named(name: &str, bytes: Vec<u8>, format: ImageFormat) -> Result<Rgb32FImage> {
    // A panic of the decoder means a damaged file, as an error does.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_bytes(bytes, format)));
    let failed = |cause: String| {
        bad(name, format!("is a {} picture that cannot be decoded: {cause}", content::name(format)))
    };
    match decoded {
        Ok(Ok(picture)) => Ok(picture),
        Ok(Err(Undecoded::Unfit(cause))) => Err(bad(name, cause)),
        Ok(Err(Undecoded::Decoder(error))) => Err(failed(error.to_string())),
        Err(_) => Err(failed("its decoder gave up; save it with another program".to_owned())),
    }
}

/// Why a picture was not decoded.
enum Undecoded {
    /// It exceeds a limit.
    Unfit(String),
    Decoder(ImageError),
}

impl From<ImageError> for Undecoded {
    fn from(error: ImageError) -> Self {
        Self::Decoder(error)
    }
}

fn decode_bytes(bytes: Vec<u8>, format: ImageFormat) -> Result<Rgb32FImage, Undecoded> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MOST_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MOST_PIXELS || width.max(height) > MOST_SIDE {
        return Err(Undecoded::Unfit(format!(
            "is {width} x {height} = {pixels} pixels where at most {MOST_PIXELS}, and {MOST_SIDE} a side, are decoded: \
             scale it down"
        )));
    }
    // As it comes from the decoder, turned, and as floats.
    let needed = 2 * decoder.total_bytes() + pixels * 12;
    memory::require_all(&format!("the picture of {width} x {height}"), needed)
        .map_err(|e| Undecoded::Unfit(e.to_string()))?;
    // Cameras store their orientation beside the pixels.
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb32f())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests;
