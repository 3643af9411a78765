//! A picture in memory: red, green and blue as floats from 0 to 1, row by row. Turns, scales, cuts and pads it.
//!
//! Relevant if you want to change how pictures are fitted to the size of an input. Invariant: there are width x height
//! pixels, at least one.

/// A pixel: red, green, blue.
pub(crate) type Pixel = [f32; 3];

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Raster {
    width: usize,
    height: usize,
    pixels: Vec<Pixel>,
}

impl Raster {
    /// The picture with `at(x, y)`.
    pub(crate) fn from_fn(width: usize, height: usize, at: impl Fn(usize, usize) -> Pixel) -> Self {
        let mut pixels = Vec::with_capacity(width * height);
        for y in 0..height {
            pixels.extend((0..width).map(|x| at(x, y)));
        }
        Self { width, height, pixels }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn height(&self) -> usize {
        self.height
    }

    pub(crate) fn at(&self, x: usize, y: usize) -> Pixel {
        self.pixels[y * self.width + x]
    }

    /// Turns the picture upright by the orientation in its Exif data: 1 to 8, of which 1 is upright. Other values change
    /// nothing.
    pub(crate) fn upright(self, orientation: u16) -> Self {
        let (w, h) = (self.width, self.height);
        match orientation {
            2 => Self::from_fn(w, h, |x, y| self.at(w - 1 - x, y)),
            3 => Self::from_fn(w, h, |x, y| self.at(w - 1 - x, h - 1 - y)),
            4 => Self::from_fn(w, h, |x, y| self.at(x, h - 1 - y)),
            5 => Self::from_fn(h, w, |x, y| self.at(y, x)),
            6 => Self::from_fn(h, w, |x, y| self.at(y, h - 1 - x)),
            7 => Self::from_fn(h, w, |x, y| self.at(w - 1 - y, h - 1 - x)),
            8 => Self::from_fn(h, w, |x, y| self.at(w - 1 - y, x)),
            _ => self,
        }
    }

    /// Scales to `width` x `height`, by linear interpolation where that enlarges, and by averages weighted with the
    /// distance where it reduces.
    pub(crate) fn scaled(&self, width: usize, height: usize) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let mut high = Vec::with_capacity(self.width * height);
        for window in windows(self.height, height) {
            let start = high.len();
            high.resize(start + self.width, [0.0; 3]);
            let rows = self.pixels[window.first * self.width..].chunks_exact(self.width);
            for (row, weight) in rows.zip(&window.weights) {
                for (sum, pixel) in high[start..].iter_mut().zip(row) {
                    add(sum, pixel, *weight);
                }
            }
        }
        let columns: Vec<Window> = windows(self.width, width).collect();
        let mut pixels = Vec::with_capacity(width * height);
        for row in high.chunks_exact(self.width) {
            pixels.extend(columns.iter().map(|window| {
                let mut sum = [0.0; 3];
                for (pixel, weight) in row[window.first..].iter().zip(&window.weights) {
                    add(&mut sum, pixel, *weight);
                }
                sum.map(|value| value.clamp(0.0, 1.0))
            }));
        }
        Self { width, height, pixels }
    }

    /// The part of `width` x `height` pixels from (`left`, `top`) on, which lies inside the picture.
    pub(crate) fn cut(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        Self::from_fn(width, height, |x, y| self.at(left + x, top + y))
    }

    /// A grey picture of `width` x `height` pixels with this one at (`left`, `top`).
    pub(crate) fn padded(
        &self,
        (left, top): (usize, usize),
        (width, height): (usize, usize),
        grey: f32,
    ) -> Self {
        Self::from_fn(width, height, |x, y| {
            let inside = (left..left + self.width).contains(&x) && (top..top + self.height).contains(&y);
            if inside { self.at(x - left, y - top) } else { [grey; 3] }
        })
    }
}

fn add(sum: &mut Pixel, pixel: &Pixel, weight: f32) {
    for (sum, value) in sum.iter_mut().zip(pixel) {
        *sum += value * weight;
    }
}

/// The source pixels of one scaled pixel along an axis, and their weights, whose sum is 1.
struct Window {
    first: usize,
    weights: Vec<f32>,
}

/// The windows of all `to` pixels that `from` pixels are scaled to: triangles around the centre of each, one source pixel
/// or one scaled pixel to either side, whichever is larger.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides of pictures are small, and negative positions become 0"
)]
fn windows(from: usize, to: usize) -> impl Iterator<Item = Window> {
    let ratio = from as f32 / to as f32;
    let reach = ratio.max(1.0);
    (0..to).map(move |index| {
        let centre = (index as f32 + 0.5) * ratio;
        let first = ((centre - reach).floor() as usize).min(from - 1);
        let end = ((centre + reach).ceil() as usize).clamp(first + 1, from);
        let weight = |at: usize| (1.0 - ((at as f32 - (centre - 0.5)) / reach).abs()).max(0.0);
        let mut weights: Vec<f32> = (first..end).map(weight).collect();
        let sum: f32 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= sum;
        }
        Window { first, weights }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use image::imageops::{FilterType, resize};
    use image::{DynamicImage, Rgb, Rgb32FImage};

    use super::*;

    fn value(x: usize, y: usize) -> Pixel {
        [x * 7 + y, x + y * 5 + 3, x * y + 11].map(|number| (number * 37 % 256) as f32 / 255.0)
    }

    fn other(raster: &Raster) -> Rgb32FImage {
        let [width, height] = [raster.width, raster.height].map(|side| u32::try_from(side).unwrap());
        Rgb32FImage::from_fn(width, height, |x, y| Rgb(raster.at(x as usize, y as usize)))
    }

    fn same(raster: &Raster, image: &Rgb32FImage) -> bool {
        (raster.width, raster.height) == (image.width() as usize, image.height() as usize)
            && raster.pixels.as_flattened() == image.as_raw().as_slice()
    }

    #[test]
    fn scales_as_the_package_image_to_the_last_bit() {
        for (w, h, width, height) in [
            (5, 3, 5, 9),
            (64, 48, 32, 32),
            (37, 91, 224, 13),
            (1, 1, 4, 4),
            (200, 2, 1, 1),
            (333, 250, 224, 224),
        ] {
            let raster = Raster::from_fn(w, h, value);
            let (scaled, [across, down]) =
                (raster.scaled(width, height), [width, height].map(|side| u32::try_from(side).unwrap()));
            let mut expected = resize(&other(&raster), across, down, FilterType::Triangle);
            assert!(same(&scaled, &expected), "{w} x {h} to {width} x {height}");
            // Another last bit: the comparison can fail.
            expected.get_pixel_mut(0, 0).0[1] += f32::EPSILON;
            assert!(!same(&scaled, &expected));
        }
    }

    #[test]
    fn turns_as_the_package_image() {
        let raster = Raster::from_fn(5, 3, value);
        let image = DynamicImage::ImageRgb32F(other(&raster));
        let turned = [
            image.clone(),
            image.fliph(),
            image.rotate180(),
            image.flipv(),
            image.rotate90().fliph(),
            image.rotate90(),
            image.rotate270().fliph(),
            image.rotate270(),
        ];
        for (orientation, expected) in (1..).zip(turned) {
            let found = raster.clone().upright(orientation);
            assert!(same(&found, &expected.into_rgb32f()), "orientation {orientation}");
            assert!(orientation == 1 || found != raster);
        }
    }
}
