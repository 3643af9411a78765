//! Pictures as model input: decodes, fits to the input's size, scales, normalises, and arranges the axes.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use fcdcc::files::Input;
use fcdcc::model::InputInfo;
use fcdcc::{Error, Result};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Rgb32FImage, imageops};
use ndarray::{Array4, ArrayD};
use serde::Deserialize;

use super::content::{self, Content, HEAD};
use fcdcc::memory;

/// Maximum side of a decoded picture: a file of a few kilobytes may claim billions of pixels.
const MOST_SIDE: u32 = 32_768;
/// Maximum pixels of a picture: 8192 x 8192. As floats they take 12 bytes each.
const MOST_PIXELS: u64 = 1 << 26;
/// Maximum bytes of a file.
const MOST_FILE_BYTES: u64 = 1 << 29;
/// Maximum bytes that a decoder may allocate besides the picture itself.
const MOST_DECODER_BYTES: u64 = 1 << 30;

/// How a picture of other proportions comes to the input's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Fit {
    /// Scale until it covers the input, cut what hangs over
    #[default]
    Crop,
    /// Scale each axis by itself
    Stretch,
    /// Scale until it fits, fill the rest with black
    Pad,
}

/// Order of the axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum PixelLayout {
    /// nchw, unless only nhwc has one or three channels
    #[default]
    Auto,
    /// [batch, channels, height, width]
    Nchw,
    /// [batch, height, width, channels]
    Nhwc,
}

/// Order of the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Color {
    /// Red first; grey where the input has one channel
    #[default]
    Rgb,
    /// Blue first
    Bgr,
}

/// Numbers separated by commas: one for all channels, or one per channel.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Vec<f32>")]
struct PerChannel(Vec<f32>);

impl FromStr for PerChannel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Option<Vec<f32>> =
            text.split(',').map(|t| t.trim().parse().ok().filter(|v: &f32| v.is_finite())).collect();
        numbers.map(Self).ok_or_else(|| {
            Error::invalid(
                "number for each channel",
                format!("{text:?}"),
                "give one or three, such as 0.5,0.4,0.4",
            )
        })
    }
}

impl TryFrom<Vec<f32>> for PerChannel {
    type Error = Error;

    fn try_from(numbers: Vec<f32>) -> Result<Self> {
        if numbers.is_empty() || numbers.iter().any(|number| !number.is_finite()) {
            let help = "give one or three, such as [0.5, 0.4, 0.4]";
            return Err(Error::invalid("numbers for each channel", format!("{numbers:?}"), help));
        }
        Ok(Self(numbers))
    }
}

impl PerChannel {
    fn at(&self, channel: usize) -> f32 {
        self.0[if self.0.len() == 1 { 0 } else { channel }]
    }

    fn check(&self, name: &str, channels: usize) -> Result<()> {
        if self.0.len() == 1 || self.0.len() == channels {
            return Ok(());
        }
        let expected = format!("1 or {channels}");
        Err(Error::mismatch(
            format!("number of values of {name}"),
            self.0.len(),
            expected,
            "give one a channel",
        ))
    }
}

/// What becomes of pictures: `(pixel / 255 * range - mean) / std`.
#[derive(Args, Clone, Debug, Deserialize)]
#[command(next_help_heading = "Pictures")]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PictureArgs {
    /// How pictures of other proportions are fitted
    #[arg(long, value_enum, default_value_t)]
    fit: Fit,
    /// Pixels become 0 to R
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    range: f32,
    /// Subtracted then, one number or one a channel (ImageNet: 0.485,0.456,0.406)
    #[arg(long, value_name = "M", default_value = "0", allow_negative_numbers = true)]
    mean: PerChannel,
    /// Divided by then (ImageNet: 0.229,0.224,0.225)
    #[arg(long, value_name = "D", default_value = "1", allow_negative_numbers = true)]
    std: PerChannel,
    /// Order of the input's axes
    #[arg(long, value_enum, default_value_t)]
    layout: PixelLayout,
    /// Order of the input's channels
    #[arg(long, value_enum, default_value_t)]
    color: Color,
}

impl Default for PictureArgs {
    fn default() -> Self {
        Self {
            fit: Fit::default(),
            range: 1.0,
            mean: PerChannel(vec![0.0]),
            std: PerChannel(vec![1.0]),
            layout: PixelLayout::default(),
            color: Color::default(),
        }
    }
}

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
        let target = self.target(input, count)?;
        self.mean.check("--mean", target.channels)?;
        self.std.check("--std", target.channels)?;
        if self.std.0.contains(&0.0) {
            return Err(Error::invalid("standard deviation (--std)", 0, "divide by something above zero"));
        }
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
            let fitted = self.fitted(&picture, u32_of(height)?, u32_of(width)?);
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
                    let value = match (target.channels, self.color) {
                        // The luma of ITU-R BT.601, the usual conversion to grey.
                        (1, _) => 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2],
                        (_, Color::Rgb) => pixel[channel],
                        (_, Color::Bgr) => pixel[2 - channel],
                    };
                    batch[[index, channel, y as usize, x as usize]] =
                        (value * self.range - self.mean.at(channel)) / self.std.at(channel);
                }
            }
        }
        let batch = batch.ok_or_else(|| Error::invalid("number of pictures", 0, "name at least one"))?;
        if !target.last {
            return Ok(batch.into_dyn());
        }
        Ok(batch.permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned().into_dyn())
    }

    fn target(&self, input: &InputInfo, count: usize) -> Result<Target> {
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
        let last = match self.layout {
            PixelLayout::Auto => !color(a) && color(c),
            layout => layout == PixelLayout::Nhwc,
        };
        let (channels, size) = if last { (c, [*a, *b]) } else { (a, [*b, *c]) };
        match channels {
            Some(channels @ (1 | 3)) => Ok(Target { channels: *channels, size, last }),
            _ => not("name the order of the axes with --layout, or give a .npy array"),
        }
    }

    fn fitted(&self, picture: &Rgb32FImage, height: u32, width: u32) -> Rgb32FImage {
        let (w, h) = picture.dimensions();
        if (w, h) == (width, height) {
            return picture.clone();
        }
        let (across, down) = (f64::from(width) / f64::from(w), f64::from(height) / f64::from(h));
        let scale = match self.fit {
            Fit::Stretch => return imageops::resize(picture, width, height, FilterType::Triangle),
            Fit::Crop => f64::max(across, down),
            Fit::Pad => f64::min(across, down),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both sides are bounded")]
        let side = |own: u32| ((f64::from(own) * scale).round() as u32).max(1);
        let (sw, sh) = match self.fit {
            Fit::Crop => (side(w).max(width), side(h).max(height)),
            _ => (side(w).min(width), side(h).min(height)),
        };
        let scaled = imageops::resize(picture, sw, sh, FilterType::Triangle);
        if self.fit == Fit::Crop {
            return imageops::crop_imm(&scaled, (sw - width) / 2, (sh - height) / 2, width, height)
                .to_image();
        }
        let mut padded = Rgb32FImage::new(width, height);
        imageops::replace(&mut padded, &scaled, i64::from((width - sw) / 2), i64::from((height - sh) / 2));
        padded
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
mod tests {
    use std::path::Path;

    use image::{Rgb, RgbImage};

    use super::*;

    fn input(shape: &[Option<usize>]) -> InputInfo {
        let described = format!("{shape:?}");
        InputInfo { name: "x".to_owned(), dtype: "f32".to_owned(), shape: Some(shape.to_vec()), described }
    }

    fn read(args: &PictureArgs, input: &InputInfo, all: &[PathBuf]) -> Result<ArrayD<f32>> {
        args.read(input, Input::open(&all[0])?, all)
    }

    fn args() -> PictureArgs {
        PictureArgs {
            fit: Fit::Crop,
            range: 1.0,
            mean: PerChannel(vec![0.0]),
            std: PerChannel(vec![1.0]),
            layout: PixelLayout::Auto,
            color: Color::Rgb,
        }
    }

    /// 4 wide, 2 high: left half red, right half blue.
    fn picture(folder: &Path) -> PathBuf {
        let path = folder.join("p.png");
        let color = |x: u32| if x < 2 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) };
        RgbImage::from_fn(4, 2, |x, _| color(x)).save(&path).unwrap();
        path
    }

    #[test]
    fn layouts_colors_and_normalisation() {
        let folder = tempfile::tempdir().unwrap();
        let path = picture(folder.path());
        let all = [path.clone(), path];
        let nchw = read(&args(), &input(&[None, Some(3), None, None]), &all).unwrap();
        assert_eq!(nchw.shape(), [2, 3, 2, 4]);
        assert_eq!([nchw[[1, 0, 0, 0]], nchw[[1, 2, 0, 0]], nchw[[1, 2, 1, 3]]], [1.0, 0.0, 1.0]);
        let nhwc = read(&args(), &input(&[Some(2), Some(2), Some(4), Some(3)]), &all).unwrap();
        assert_eq!(nhwc.shape(), [2, 2, 4, 3]);
        assert_eq!([nhwc[[0, 0, 0, 0]], nhwc[[0, 0, 3, 2]], nhwc[[0, 0, 3, 0]]], [1.0, 1.0, 0.0]);
        let bgr = PictureArgs {
            color: Color::Bgr,
            range: 255.0,
            mean: PerChannel(vec![100.0, 0.0, 10.0]),
            std: PerChannel(vec![2.0]),
            ..args()
        };
        let bgr = read(&bgr, &input(&[Some(2), Some(3), Some(2), Some(4)]), &all).unwrap();
        assert_eq!([bgr[[0, 0, 0, 0]], bgr[[0, 2, 0, 0]], bgr[[0, 0, 0, 3]]], [-50.0, 122.5, 77.5]);
        let grey = read(&args(), &input(&[None, Some(1), Some(2), Some(4)]), &all).unwrap();
        assert!((grey[[0, 0, 0, 0]] - 0.299).abs() < 1e-6 && (grey[[0, 0, 0, 3]] - 0.114).abs() < 1e-6);
    }

    #[test]
    fn proportions_are_cropped_stretched_or_padded() {
        let folder = tempfile::tempdir().unwrap();
        let all = [picture(folder.path())];
        let square = input(&[Some(1), Some(3), Some(2), Some(2)]);
        let red = |fit| {
            let array = read(&PictureArgs { fit, ..args() }, &square, &all).unwrap();
            [array[[0, 0, 0, 0]], array[[0, 0, 0, 1]], array[[0, 0, 1, 0]]]
        };
        assert_eq!(red(Fit::Crop), [1.0, 0.0, 1.0]);
        let [left, right, _] = red(Fit::Stretch);
        assert!(left > 0.8 && right < 0.2, "{left} {right}");
        // A strip of one row with both colours, and black around it.
        let [top, _, bottom] = red(Fit::Pad);
        assert!(top.max(bottom) > 0.8 && top.min(bottom) == 0.0, "{top} {bottom}");
    }

    #[test]
    fn pictures_are_turned_the_way_the_camera_was_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jpg");
        RgbImage::from_fn(16, 8, |x, _| Rgb([if x < 8 { 255 } else { 0 }; 3])).save(&path).unwrap();
        let open = input(&[None, Some(1), None, None]);
        let lying = read(&args(), &open, std::slice::from_ref(&path)).unwrap();
        assert_eq!(lying.shape(), [1, 1, 8, 16]);
        // Exif with one entry: orientation 6, a clockwise turn by 90 degrees.
        let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
        exif.splice(0..0, [0xff, 0xe1, length[0], length[1]]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.splice(2..2, exif);
        std::fs::write(&path, bytes).unwrap();
        let standing = read(&args(), &open, &[path]).unwrap();
        assert_eq!(standing.shape(), [1, 1, 16, 8]);
        assert!(standing[[0, 0, 2, 4]] > 0.9 && standing[[0, 0, 13, 4]] < 0.1, "the left half is above");
    }

    #[test]
    fn what_is_no_picture_or_takes_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let all = [picture(folder.path())];
        let refused = |input: &InputInfo, all: &[PathBuf]| read(&args(), input, all).unwrap_err().to_string();
        let vector = refused(&input(&[Some(1), Some(10)]), &all);
        assert!(vector.contains("input x for pictures is [Some(1), Some(10)]"), "{vector}");
        let many = refused(&input(&[Some(4), Some(3), Some(8), Some(8)]), &all);
        assert!(many.contains("number of pictures is 1 where a multiple of 4"), "{many}");
        let five = refused(&input(&[None, Some(5), Some(8), Some(8)]), &all);
        assert!(five.contains("--layout"), "{five}");
        let text = folder.path().join("t.png");
        std::fs::write(&text, "no picture").unwrap();
        let text = refused(&input(&[None, Some(3), Some(8), Some(8)]), &[text]);
        assert!(text.contains("is not a picture that can be decoded but a text"), "{text}");
    }
}
