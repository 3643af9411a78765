//! Pictures as arrays.

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

/// The options as in `[picture]` of a model.toml.
fn args(text: &str) -> PictureArgs {
    toml::from_str(text).unwrap()
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
    let nchw = read(&args(""), &input(&[None, Some(3), None, None]), &all).unwrap();
    assert_eq!(nchw.shape(), [2, 3, 2, 4]);
    assert_eq!([nchw[[1, 0, 0, 0]], nchw[[1, 2, 0, 0]], nchw[[1, 2, 1, 3]]], [1.0, 0.0, 1.0]);
    let nhwc = read(&args(""), &input(&[Some(2), Some(2), Some(4), Some(3)]), &all).unwrap();
    assert_eq!(nhwc.shape(), [2, 2, 4, 3]);
    assert_eq!([nhwc[[0, 0, 0, 0]], nhwc[[0, 0, 3, 2]], nhwc[[0, 0, 3, 0]]], [1.0, 1.0, 0.0]);
    let bgr = args("color = 'bgr'\nrange = 255.0\nmean = [100.0, 0.0, 10.0]\nstd = [2.0]");
    let bgr = read(&bgr, &input(&[Some(2), Some(3), Some(2), Some(4)]), &all).unwrap();
    assert_eq!([bgr[[0, 0, 0, 0]], bgr[[0, 2, 0, 0]], bgr[[0, 0, 0, 3]]], [-50.0, 122.5, 77.5]);
    let grey = read(&args(""), &input(&[None, Some(1), Some(2), Some(4)]), &all).unwrap();
    assert!((grey[[0, 0, 0, 0]] - 0.299).abs() < 1e-6 && (grey[[0, 0, 0, 3]] - 0.114).abs() < 1e-6);
}

#[test]
fn proportions_are_cropped_stretched_or_padded() {
    let folder = tempfile::tempdir().unwrap();
    let all = [picture(folder.path())];
    let square = input(&[Some(1), Some(3), Some(2), Some(2)]);
    let red = |fit| {
        let array = read(&args(&format!("fit = '{fit}'")), &square, &all).unwrap();
        [array[[0, 0, 0, 0]], array[[0, 0, 0, 1]], array[[0, 0, 1, 0]]]
    };
    assert_eq!(red("crop"), [1.0, 0.0, 1.0]);
    let [left, right, _] = red("stretch");
    assert!(left > 0.8 && right < 0.2, "{left} {right}");
    // A strip of one row with both colours, and black around it.
    let [top, _, bottom] = red("pad");
    assert!(top.max(bottom) > 0.8 && top.min(bottom) == 0.0, "{top} {bottom}");
}

#[test]
fn pictures_are_turned_the_way_the_camera_was_held() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jpg");
    RgbImage::from_fn(16, 8, |x, _| Rgb([if x < 8 { 255 } else { 0 }; 3])).save(&path).unwrap();
    let open = input(&[None, Some(1), None, None]);
    let lying = read(&args(""), &open, std::slice::from_ref(&path)).unwrap();
    assert_eq!(lying.shape(), [1, 1, 8, 16]);
    // Exif with one entry: orientation 6, a clockwise turn by 90 degrees.
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    exif.splice(0..0, [0xff, 0xe1, length[0], length[1]]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.splice(2..2, exif);
    std::fs::write(&path, bytes).unwrap();
    let standing = read(&args(""), &open, &[path]).unwrap();
    assert_eq!(standing.shape(), [1, 1, 16, 8]);
    assert!(standing[[0, 0, 2, 4]] > 0.9 && standing[[0, 0, 13, 4]] < 0.1, "the left half is above");
}

#[test]
fn what_is_no_picture_or_takes_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let all = [picture(folder.path())];
    let refused = |input: &InputInfo, all: &[PathBuf]| read(&args(""), input, all).unwrap_err().to_string();
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

/// Pixels in rows, three channels each.
struct Pixels {
    sides: [usize; 2],
    values: Vec<[f64; 3]>,
}

impl Pixels {
    /// A picture without a pattern, which is also written to a file.
    fn random(folder: &Path, width: usize, height: usize) -> (Self, PathBuf) {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        };
        let picture =
            RgbImage::from_fn(u32::try_from(width).unwrap(), u32::try_from(height).unwrap(), |_, _| {
                Rgb([next(), next(), next()])
            });
        let path = folder.join(format!("{width}x{height}.png"));
        picture.save(&path).unwrap();
        let values = picture.pixels().map(|pixel| pixel.0.map(|v| f64::from(v) / 255.0)).collect();
        (Self { sides: [width, height], values }, path)
    }

    /// Scaled by the definition of a triangle filter in f64: the weight of a pixel falls from 1 at the centre of the new
    /// pixel to 0 at a distance of one old or new pixel, whichever is longer.
    fn scaled(&self, to: [usize; 2]) -> Self {
        let weights = |from: usize, to: usize, at: usize| -> Vec<f64> {
            let ratio = from as f64 / to as f64;
            let centre = (at as f64 + 0.5) * ratio;
            let weight = |x: usize| (1.0 - ((x as f64 + 0.5 - centre) / ratio.max(1.0)).abs()).max(0.0);
            let sum: f64 = (0..from).map(weight).sum();
            (0..from).map(|x| weight(x) / sum).collect()
        };
        let mut values = Vec::new();
        for y in 0..to[1] {
            let down = weights(self.sides[1], to[1], y);
            for x in 0..to[0] {
                let across = weights(self.sides[0], to[0], x);
                let mut sum = [0.0; 3];
                for (index, pixel) in self.values.iter().enumerate() {
                    let weight = down[index / self.sides[0]] * across[index % self.sides[0]];
                    (0..3).for_each(|c| sum[c] += weight * pixel[c]);
                }
                values.push(sum);
            }
        }
        Self { sides: to, values }
    }

    fn at(&self, x: usize, y: usize) -> [f64; 3] {
        self.values[y * self.sides[0] + x]
    }
}

/// The largest difference of an input `[1, 3, h, w]` from what `want` gives for channel, row and column.
fn largest_difference(got: &ArrayD<f32>, want: impl Fn(usize, usize, usize) -> f64) -> f64 {
    let differences =
        got.indexed_iter().map(|(at, value)| (f64::from(*value) - want(at[1], at[2], at[3])).abs());
    differences.fold(0.0, f64::max)
}

/// f32 sums of some ten pixels, divided by a standard deviation of 0.22.
const ROUNDING: f64 = 1e-5;

#[test]
fn imagenet_cuts_out_the_middle_of_a_larger_picture() {
    let folder = tempfile::tempdir().unwrap();
    // 28 x 256 / 224 = 32; 44 x 32 / 40 = 35.2. Of a rest of 7 pixels, 3.5 rounds to 4 on the left.
    for (sides, scaled, start) in [([44, 40], [35, 32], [4, 2]), ([20, 35], [32, 56], [2, 14])] {
        let (pixels, path) = Pixels::random(folder.path(), sides[0], sides[1]);
        let shape = input(&[Some(1), Some(3), Some(28), Some(28)]);
        let scaled = pixels.scaled(scaled);
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let want =
            |c: usize, y: usize, x: usize| (scaled.at(x + start[0], y + start[1])[c] - mean[c]) / std[c];
        let difference = |text: &str| {
            largest_difference(&read(&args(text), &shape, std::slice::from_ref(&path)).unwrap(), want)
        };
        let got = difference("preset = 'imagenet'");
        assert!(got < ROUNDING, "{sides:?}: {got}");
        for other in ["fit = 'crop'", "mean = [0.4, 0.456, 0.406]", "std = [0.225]", "range = 255.0"] {
            assert!(difference(&format!("preset = 'imagenet'\n{other}")) > 0.01, "{other}");
        }
        // Blue first: each colour keeps its own numbers.
        let bgr =
            read(&args("preset = 'imagenet'\ncolor = 'bgr'"), &shape, std::slice::from_ref(&path)).unwrap();
        assert!(largest_difference(&bgr, |c, y, x| want(2 - c, y, x)) < ROUNDING);
    }
}

#[test]
fn yolo_pads_with_grey_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let (pixels, path) = Pixels::random(folder.path(), 40, 21);
    let shape = input(&[Some(1), Some(3), Some(32), Some(32)]);
    // 21 x 32 / 40 = 16.8: 17 rows, 7 above and 8 below.
    let scaled = pixels.scaled([32, 17]);
    let want = |c: usize, y: usize, x: usize| match y {
        7..24 => scaled.at(x, y - 7)[c],
        _ => 114.0 / 255.0,
    };
    let difference = |text: &str| {
        largest_difference(&read(&args(text), &shape, std::slice::from_ref(&path)).unwrap(), want)
    };
    assert!(difference("preset = 'yolo'") < ROUNDING);
    for other in ["fill = 0", "fit = 'stretch'", "range = 255.0", "color = 'bgr'"] {
        assert!(difference(&format!("preset = 'yolo'\n{other}")) > 0.1, "{other}");
    }
}

#[test]
fn caffe_takes_pixels_of_blue_green_and_red_minus_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    let (pixels, path) = Pixels::random(folder.path(), 6, 5);
    let shape = input(&[Some(1), Some(3), Some(5), Some(6)]);
    let mean = [104.0, 117.0, 123.0];
    let want = |c: usize, y: usize, x: usize| pixels.at(x, y)[2 - c] * 255.0 - mean[c];
    let difference = |text: &str| {
        largest_difference(&read(&args(text), &shape, std::slice::from_ref(&path)).unwrap(), want)
    };
    // Pixels up to 255 in f32.
    assert!(difference("preset = 'caffe'") < 255.0 * ROUNDING);
    assert!(difference("preset = 'caffe'\ncolor = 'rgb'") > 1.0);
    assert!(difference("preset = 'none'") > 1.0);
}
