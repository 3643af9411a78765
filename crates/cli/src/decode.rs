//! Decodes pictures: JPEG, PNG, WebP, BMP and TIFF files become a [`Raster`], turned upright.
//!
//! Relevant if you want to add a format, which the module [`content`](super::content) must recognise. Invariant: nothing of
//! the size in a header is allocated before that size was compared with the limits and the available memory.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fcdcc::{Error, Result, memory};
use tiff::decoder::{Decoder as TiffDecoder, DecodingResult, Limits as TiffLimits};
use tiff::tags::Tag;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use super::content::Format;
use super::raster::Raster;

/// Maximum side of a decoded picture: a file of a few kilobytes may claim billions of pixels.
pub(crate) const MOST_SIDE: usize = 32_768;
/// Maximum pixels of a picture: 8192 x 8192. As floats they take 12 bytes each.
const MOST_PIXELS: usize = 1 << 26;
/// Maximum bytes that a decoder may allocate besides the picture itself.
const MOST_DECODER_BYTES: usize = 1 << 30;

pub(crate) fn bad(name: &str, cause: String) -> Error {
    Error::File { path: name.to_owned(), cause, input: true }
}

/// Decodes a picture, which is called `name` in messages, and turns it upright by its orientation tag.
///
/// # Errors
/// [`Error::File`] for a damaged file, a kind of picture that is not supported, or one that is too large.
pub(crate) fn decode(name: &str, bytes: &[u8], format: Format) -> Result<Raster> {
    // A panic of the decoder means a damaged file, as an error does.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => jpeg(bytes),
        Format::Png => png(bytes),
        Format::WebP => webp(bytes),
        Format::Bmp => bmp(bytes),
        Format::Tiff => tiff(bytes),
    }));
    let failed =
        |cause: &str| bad(name, format!("is a {} picture that cannot be decoded: {cause}", format.name()));
    match decoded {
        Ok(Ok(raster)) => Ok(raster),
        Ok(Err(Undecoded::Unfit(cause))) => Err(bad(name, cause)),
        Ok(Err(Undecoded::Decoder(cause))) => Err(failed(&cause)),
        Err(_) => Err(failed("its decoder gave up; save it with another program")),
    }
}

/// Why a picture was not decoded.
enum Undecoded {
    /// It exceeds a limit.
    Unfit(String),
    Decoder(String),
}

impl<E: std::error::Error> From<E> for Undecoded {
    fn from(error: E) -> Self {
        Self::Decoder(error.to_string())
    }
}

fn broken(cause: &str) -> Undecoded {
    Undecoded::Decoder(cause.to_owned())
}

/// Refuses a picture that is too large. `bytes`: of a pixel as it comes from the decoder.
fn admit(width: usize, height: usize, bytes: usize) -> Result<(), Undecoded> {
    let pixels = width.saturating_mul(height);
    if pixels > MOST_PIXELS || width.max(height) > MOST_SIDE {
        return Err(Undecoded::Unfit(format!(
            "is {width} x {height} = {pixels} pixels where at most {MOST_PIXELS}, and {MOST_SIDE} a side, are decoded: \
             scale it down"
        )));
    }
    if pixels == 0 {
        return Err(broken("it has no pixels"));
    }
    // As it comes from the decoder, as floats, and turned.
    let needed = pixels as u64 * (bytes as u64 + 24);
    memory::require_all(&format!("the picture of {width} x {height}"), needed)
        .map_err(|e| Undecoded::Unfit(e.to_string()))
}

/// Samples of the pixels of a picture, row by row.
struct Samples<'a, S> {
    size: [usize; 2],
    values: &'a [S],
    /// Samples between two pixels of a row, and between two channels of a pixel.
    steps: [usize; 2],
    /// One or two: grey. Three or four: red, green, blue. The last of two or four is the opacity, which is ignored.
    channels: usize,
}

impl<S: Copy> Samples<'_, S> {
    fn raster(&self, value: impl Fn(S) -> f32) -> Result<Raster, Undecoded> {
        let ([width, height], [step, apart]) = (self.size, self.steps);
        let last = (width * height - 1) * step + (self.channels - 1) * apart;
        if self.values.len() <= last {
            return Err(broken("it ends too early"));
        }
        let apart = if self.channels < 3 { 0 } else { apart };
        Ok(Raster::from_fn(width, height, |x, y| {
            let at = (y * width + x) * step;
            [0, 1, 2].map(|channel| value(self.values[at + channel * apart]))
        }))
    }
}

/// Pixels of `channels` bytes each.
fn of_bytes(size: [usize; 2], samples: &[u8], channels: usize) -> Result<Raster, Undecoded> {
    Samples { size, values: samples, steps: [channels, 1], channels }.raster(from_u8)
}

fn from_u8(sample: u8) -> f32 {
    f32::from(sample) / f32::from(u8::MAX)
}

fn from_u16(sample: u16) -> f32 {
    f32::from(sample) / f32::from(u16::MAX)
}

fn options() -> DecoderOptions {
    // The limits are checked here.
    DecoderOptions::default().set_strict_mode(false).set_max_width(usize::MAX).set_max_height(usize::MAX)
}

fn jpeg(bytes: &[u8]) -> Result<Raster, Undecoded> {
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options());
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().ok_or_else(|| broken("it has no size"))?;
    admit(width, height, 3)?;
    let (colours, channels) = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => (ColorSpace::Luma, 1),
        _ => (ColorSpace::RGB, 3),
    };
    decoder.set_options(options().jpeg_set_out_colorspace(colours));
    let orientation = orientation(decoder.exif().map(Vec::as_slice));
    let samples = decoder.decode()?;
    Ok(of_bytes([width, height], &samples, channels)?.upright(orientation))
}

fn png(bytes: &[u8]) -> Result<Raster, Undecoded> {
    let limits = png::Limits { bytes: MOST_DECODER_BYTES };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // Palettes become colours, and fewer bits become eight.
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info()?;
    let [width, height] = [reader.info().width, reader.info().height].map(|side| side as usize);
    let orientation = orientation(reader.info().exif_metadata.as_deref());
    let (colours, depth) = reader.output_color_type();
    let (channels, wide) = (colours.samples(), depth == png::BitDepth::Sixteen);
    admit(width, height, channels * if wide { 4 } else { 1 })?;
    let mut samples = vec![0; reader.output_buffer_size().ok_or_else(|| broken("it is too large"))?];
    reader.next_frame(&mut samples)?;
    let size = [width, height];
    let raster = if wide {
        let samples: Vec<u16> =
            samples.as_chunks::<2>().0.iter().map(|two| u16::from_be_bytes(*two)).collect();
        Samples { size, values: &samples, steps: [channels, 1], channels }.raster(from_u16)?
    } else {
        of_bytes(size, &samples, channels)?
    };
    Ok(raster.upright(orientation))
}

/// The first frame of an animation.
fn webp(bytes: &[u8]) -> Result<Raster, Undecoded> {
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes))?;
    let (width, height) = decoder.dimensions();
    let (size, channels) = ([width as usize, height as usize], if decoder.has_alpha() { 4 } else { 3 });
    admit(size[0], size[1], channels)?;
    decoder.set_memory_limit(MOST_DECODER_BYTES);
    let orientation = orientation(decoder.exif_metadata()?.as_deref());
    let mut samples = vec![0; size[0] * size[1] * channels];
    decoder.read_image(&mut samples)?;
    Ok(of_bytes(size, &samples, channels)?.upright(orientation))
}

fn bmp(bytes: &[u8]) -> Result<Raster, Undecoded> {
    // The decoder gives wrong pixels for other numbers of bits. Where the bits of a pixel are depends on the header.
    let u16_at =
        |at: usize| bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_le_bytes);
    let bits = if u16_at(14) == Some(12) { u16_at(24) } else { u16_at(28) };
    if let Some(bits) = bits.filter(|bits| ![8, 24, 32].contains(bits)) {
        let cause = format!("it has {bits} bits a pixel where 8, 24 or 32 were expected: save it as PNG");
        return Err(broken(&cause));
    }
    let failed = |error: zune_bmp::BmpDecoderErrors| Undecoded::Decoder(format!("{error:?}"));
    let mut decoder = zune_bmp::BmpDecoder::new_with_options(ZCursor::new(bytes), options());
    decoder.decode_headers().map_err(failed)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| broken("it has no size"))?;
    let channels = decoder.colorspace().ok_or_else(|| broken("it has no colours"))?.num_components();
    admit(width, height, channels)?;
    of_bytes([width, height], &decoder.decode().map_err(failed)?, channels)
}

fn tiff(bytes: &[u8]) -> Result<Raster, Undecoded> {
    let mut limits = TiffLimits::default();
    limits.decoding_buffer_size = MOST_DECODER_BYTES;
    limits.intermediate_buffer_size = MOST_DECODER_BYTES;
    let mut decoder = TiffDecoder::new(Cursor::new(bytes))?.with_limits(limits);
    let (width, height) = decoder.dimensions()?;
    let size = [width as usize, height as usize];
    let colours = decoder.colortype()?;
    let (channels, stored) = match colours {
        tiff::ColorType::Gray(_) => (1, 1),
        tiff::ColorType::GrayA(_) => (2, 2),
        tiff::ColorType::RGB(_) => (3, 3),
        tiff::ColorType::RGBA(_) => (4, 4),
        tiff::ColorType::CMYK(8 | 16) => (3, 4),
        other => return Err(Undecoded::Decoder(format!("colours of type {other:?} are not supported"))),
    };
    admit(size[0], size[1], stored * usize::from(colours.bit_depth().div_ceil(8)) + 2 * stored)?;
    let tag = decoder.find_tag(Tag::Orientation)?;
    let orientation = tag.and_then(|value| value.into_u16().ok()).unwrap_or(1);
    let mut found = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut found)?;
    let plane = layout.plane_stride.map_or(0, usize::from);
    // Whole planes, one after the other, or all channels of a pixel together.
    let steps = |bytes: usize| if layout.planes > 1 { [1, plane / bytes] } else { [channels, 1] };
    let raster = match (colours, found) {
        (tiff::ColorType::CMYK(_), _) if layout.planes > 1 => {
            return Err(broken("separate planes of CMYK are not supported"));
        }
        (tiff::ColorType::CMYK(8), DecodingResult::U8(samples)) => of_inks(size, &samples, u8::MAX)?,
        (tiff::ColorType::CMYK(16), DecodingResult::U16(samples)) => of_inks(size, &samples, u16::MAX)?,
        (tiff::ColorType::Gray(1), DecodingResult::U8(bits)) => {
            let rows = bits.chunks_exact(size[0].div_ceil(8));
            let bit = |row: &[u8], x: usize| if row[x / 8] >> (7 - x % 8) & 1 == 1 { u8::MAX } else { 0 };
            let samples: Vec<u8> = rows.flat_map(|row| (0..size[0]).map(move |x| bit(row, x))).collect();
            of_bytes(size, &samples, 1)?
        }
        (_, DecodingResult::U8(samples)) if colours.bit_depth() == 8 => {
            Samples { size, values: &samples, steps: steps(1), channels }.raster(from_u8)?
        }
        (_, DecodingResult::U16(samples)) => {
            Samples { size, values: &samples, steps: steps(2), channels }.raster(from_u16)?
        }
        (_, DecodingResult::F32(samples)) => {
            Samples { size, values: &samples, steps: steps(4), channels }.raster(|v| v)?
        }
        (colours, _) => {
            return Err(Undecoded::Decoder(format!("its samples of type {colours:?} are not supported")));
        }
    };
    Ok(raster.upright(orientation))
}

/// Pixels of cyan, magenta, yellow and black from 0 to `most`. Their colours are rounded down to whole numbers.
fn of_inks<S: Copy + Into<f32>>(size: [usize; 2], samples: &[S], most: S) -> Result<Raster, Undecoded> {
    let most: f32 = most.into();
    let colours = samples.as_chunks::<4>().0.iter().flat_map(|inks| {
        let [cyan, magenta, yellow, black] = inks.map(Into::into);
        let light = 1.0 - black / most;
        [cyan, magenta, yellow].map(|ink| ((most - ink) * light).trunc())
    });
    let samples: Vec<f32> = colours.collect();
    Samples { size, values: &samples, steps: [3, 1], channels: 3 }.raster(|value| value / most)
}

/// The orientation in Exif data; 1, which is upright, if there is none.
fn orientation(exif: Option<&[u8]>) -> u16 {
    const TAG: usize = 0x112;
    let find = |exif: &[u8]| {
        let big = match exif.get(..4)? {
            b"II*\0" => false,
            b"MM\0*" => true,
            _ => return None,
        };
        let number = |at: usize, bytes: usize| {
            let bytes = exif.get(at..at.checked_add(bytes)?)?;
            let shift = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
            Some(if big { bytes.iter().fold(0, shift) } else { bytes.iter().rev().fold(0, shift) })
        };
        let table = number(4, 4)?;
        for entry in 0..number(table, 2)? {
            let at = table + 2 + 12 * entry;
            // One number of 16 bits.
            if (number(at, 2)?, number(at + 2, 2)?, number(at + 4, 4)?) == (TAG, 3, 1) {
                return u16::try_from(number(at + 8, 2)?).ok();
            }
        }
        None
    };
    exif.and_then(find).unwrap_or(1)
}

/// A greyscale PNG file of `width` x `height` bytes.
///
/// # Errors
/// A message if the number of bytes does not fit.
pub(crate) fn grey_png(width: u32, height: u32, samples: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(samples)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
