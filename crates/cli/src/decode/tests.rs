#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::*;

const NAMES: [(Format, ImageFormat); 5] = [
    (Format::Jpeg, ImageFormat::Jpeg),
    (Format::Png, ImageFormat::Png),
    (Format::WebP, ImageFormat::WebP),
    (Format::Bmp, ImageFormat::Bmp),
    (Format::Tiff, ImageFormat::Tiff),
];

/// The pixels of `bytes` by the package `image`, turned upright.
fn expected(bytes: &[u8], format: Format) -> Raster {
    let (_, other) = NAMES.iter().find(|(own, _)| *own == format).unwrap();
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), *other).into_decoder().unwrap();
    let orientation = decoder.orientation().unwrap();
    let mut picture = DynamicImage::from_decoder(decoder).unwrap();
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb32f();
    Raster::from_fn(picture.width() as usize, picture.height() as usize, |x, y| {
        picture.get_pixel(u32::try_from(x).unwrap(), u32::try_from(y).unwrap()).0
    })
}

/// A picture of 37 x 23 pixels of this type.
fn picture(colours: ColorType) -> DynamicImage {
    let deep = DynamicImage::ImageRgba32F(image::Rgba32FImage::from_fn(37, 23, |x, y| {
        image::Rgba(
            [x * 7 + y, x * y, x + 3 * y, x * 5 + 40].map(|number| (number * 31 % 256) as f32 / 255.0),
        )
    }));
    match colours {
        ColorType::L8 => deep.to_luma8().into(),
        ColorType::La8 => deep.to_luma_alpha8().into(),
        ColorType::Rgb8 => deep.to_rgb8().into(),
        ColorType::Rgba8 => deep.to_rgba8().into(),
        ColorType::L16 => deep.to_luma16().into(),
        ColorType::La16 => deep.to_luma_alpha16().into(),
        ColorType::Rgb16 => deep.to_rgb16().into(),
        ColorType::Rgba16 => deep.to_rgba16().into(),
        ColorType::Rgb32F => deep.to_rgb32f().into(),
        _ => deep,
    }
}

fn check(bytes: &[u8], format: Format, what: &str) {
    let found = decode(what, bytes, format).unwrap_or_else(|e| panic!("{what}: {e}"));
    let expected = expected(bytes, format);
    assert_eq!((found.width(), found.height()), (expected.width(), expected.height()), "{what}");
    for (y, x) in (0..found.height()).flat_map(|y| (0..found.width()).map(move |x| (y, x))) {
        // The other one divides in another way.
        for (found, expected) in found.at(x, y).into_iter().zip(expected.at(x, y)) {
            assert!(
                (found - expected).abs() <= f32::EPSILON / 2.0,
                "{what} at {x}, {y}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn every_format_and_colour_type_is_decoded_as_by_the_package_image() {
    use ColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgb32F, Rgba8, Rgba16, Rgba32F};
    let written: [(Format, &[ColorType]); 5] = [
        (Format::Jpeg, &[L8, Rgb8]),
        (Format::Png, &[L8, La8, Rgb8, Rgba8, L16, La16, Rgb16, Rgba16]),
        (Format::WebP, &[Rgb8, Rgba8]),
        (Format::Bmp, &[L8, Rgb8, Rgba8]),
        (Format::Tiff, &[L8, Rgb8, Rgba8, L16, Rgb16, Rgba16, Rgb32F, Rgba32F]),
    ];
    for (format, types) in written {
        let (_, other) = NAMES.iter().find(|(own, _)| *own == format).unwrap();
        for colours in types {
            let mut bytes = Vec::new();
            picture(*colours).write_to(&mut Cursor::new(&mut bytes), *other).unwrap();
            check(&bytes, format, &format!("{format:?} {colours:?}"));
            // A picture that ends early is refused or differs; it is no panic.
            let whole = decode("whole", &bytes, format).unwrap();
            let half = decode("half", &bytes[..bytes.len() / 2], format);
            assert!(half.is_err() || half.unwrap() != whole, "{format:?} {colours:?}");
        }
    }
}

/// A TIFF file of one strip for each of `planes`, with `tags` besides the sizes.
fn tiff_file([width, height]: [u16; 2], tags: &[(u16, &[u16])], planes: &[&[u8]]) -> Vec<u8> {
    let mut file = b"II*\0".to_vec();
    let data: usize = 8 + planes.iter().map(|plane| plane.len()).sum::<usize>();
    file.extend(u32::try_from(data).unwrap().to_le_bytes());
    for plane in planes {
        file.extend(*plane);
    }
    let mut starts = vec![8];
    for plane in planes {
        starts.push(starts.last().unwrap() + u16::try_from(plane.len()).unwrap());
    }
    starts.pop();
    let lengths: Vec<u16> = planes.iter().map(|plane| u16::try_from(plane.len()).unwrap()).collect();
    let (width, height) = ([width], [height]);
    let mut all: Vec<(u16, &[u16])> =
        vec![(256, &width), (257, &height), (259, &[1]), (273, &starts), (278, &height), (279, &lengths)];
    all.extend(tags);
    all.sort_by_key(|(tag, _)| *tag);
    file.extend(u16::try_from(all.len()).unwrap().to_le_bytes());
    let mut beyond = Vec::new();
    let behind = data + 2 + 12 * all.len() + 4;
    for (tag, values) in &all {
        file.extend(tag.to_le_bytes());
        file.extend(3_u16.to_le_bytes());
        file.extend(u32::try_from(values.len()).unwrap().to_le_bytes());
        let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        if bytes.len() > 4 {
            let at = u32::try_from(behind + beyond.len()).unwrap();
            beyond.append(&mut bytes);
            bytes = at.to_le_bytes().to_vec();
        }
        bytes.resize(4, 0);
        file.extend(bytes);
    }
    file.extend([0; 4]);
    file.extend(beyond);
    file
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 97 + at / 7 * 31) % 251).unwrap()).collect()
}

#[test]
fn rare_kinds_of_tiff_are_decoded_as_by_the_package_image() {
    // Tags: 258 bits of each sample, 262 the meaning of samples, 274 orientation, 277 samples of a pixel, 284 planes.
    let bits = noise(2 * 5);
    for meaning in [0, 1] {
        let file = tiff_file([13, 5], &[(258, &[1]), (262, &[meaning]), (277, &[1])], &[&bits]);
        check(&file, Format::Tiff, &format!("one bit, meaning {meaning}"));
    }
    let inks = noise(4 * 6 * 5 * 2);
    let file = tiff_file([6, 5], &[(258, &[8; 4]), (262, &[5]), (277, &[4])], &[&inks[..120]]);
    check(&file, Format::Tiff, "CMYK");
    let file = tiff_file([6, 5], &[(258, &[16; 4]), (262, &[5]), (277, &[4])], &[&inks]);
    check(&file, Format::Tiff, "CMYK of 16 bits");
    let planes = noise(3 * 30);
    let planes: Vec<&[u8]> = planes.chunks(30).collect();
    let file = tiff_file([6, 5], &[(258, &[8; 3]), (262, &[2]), (277, &[3]), (284, &[2])], &planes);
    check(&file, Format::Tiff, "planes");
    for orientation in 1..=8 {
        let tags: &[(u16, &[u16])] = &[(258, &[8; 3]), (262, &[2]), (274, &[orientation]), (277, &[3])];
        check(&tiff_file([6, 5], tags, &[&noise(90)]), Format::Tiff, &format!("orientation {orientation}"));
    }
}

/// A BMP file with this number of bits, compression, palette and data.
fn bmp_file([width, height]: [i32; 2], bits: u16, compression: u32, palette: &[u8], data: &[u8]) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    let offset = 14 + 40 + palette.len();
    file.extend(u32::try_from(offset + data.len()).unwrap().to_le_bytes());
    file.extend([0; 4]);
    file.extend(u32::try_from(offset).unwrap().to_le_bytes());
    file.extend(40_u32.to_le_bytes());
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend(1_u16.to_le_bytes());
    file.extend(bits.to_le_bytes());
    file.extend(compression.to_le_bytes());
    file.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    file.extend([0; 16]);
    file.extend(palette);
    file.extend(data);
    file
}

#[test]
fn rare_kinds_of_bmp_are_decoded_as_by_the_package_image() {
    for bits in [1, 4, 16] {
        let file = bmp_file([5, 3], bits, 0, &noise(64), &noise(36));
        let refused = decode("few", &file, Format::Bmp).unwrap_err().to_string();
        assert!(refused.contains(&format!("{bits} bits a pixel")), "{refused}");
    }
    for (bits, row) in [(8, 8), (24, 16), (32, 20)] {
        let mut palette = noise(if bits == 8 { 4 * 256 } else { 0 });
        palette.iter_mut().skip(3).step_by(4).for_each(|unused| *unused = 0);
        for height in [3, -3] {
            let file = bmp_file([5, height], bits, 0, &palette, &noise(row * 3));
            check(&file, Format::Bmp, &format!("{bits} bits, height {height}"));
        }
    }
    let mut palette = noise(4 * 256);
    palette.iter_mut().skip(3).step_by(4).for_each(|unused| *unused = 0);
    // Runs of equal pixels, a literal run, ends of rows, and the end.
    let runs = [3, 7, 2, 9, 0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0, 5, 200, 0, 1];
    check(&bmp_file([5, 3], 8, 1, &palette, &runs), Format::Bmp, "run lengths");
}

#[test]
fn pictures_turn_by_their_exif_data() {
    let mut bytes = Vec::new();
    picture(ColorType::Rgb8).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
    let lying = decode("lying", &bytes, Format::Jpeg).unwrap();
    for orientation in 1..=8_u8 {
        for big in [false, true] {
            let mut exif = b"Exif\0\0".to_vec();
            exif.extend(if big {
                [&b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]]
                    .concat()
            } else {
                [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]]
                    .concat()
            });
            let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
            exif.splice(0..0, [0xff, 0xe1, length[0], length[1]]);
            let mut turned = bytes.clone();
            turned.splice(2..2, exif);
            check(&turned, Format::Jpeg, &format!("orientation {orientation}"));
            let found = decode("turned", &turned, Format::Jpeg).unwrap();
            assert_eq!(found == lying, orientation == 1, "orientation {orientation}");
        }
    }
    for exif in [&b""[..], b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01"] {
        assert_eq!(orientation(Some(exif)), 1);
    }
}

#[test]
fn sizes_beyond_the_limits_are_refused_before_memory_is_taken() {
    let mut png = grey_png(3, 2, &[0, 50, 100, 150, 200, 250]).unwrap();
    check(&png, Format::Png, "as written");
    for (width, height) in [(40_000_u32, 1_u32), (30_000, 30_000)] {
        png.splice(16..24, [width.to_be_bytes(), height.to_be_bytes()].concat());
        let sum = crc32fast::hash(&png[12..29]).to_be_bytes();
        png.splice(29..33, sum);
        let refused = decode("p", &png, Format::Png).unwrap_err().to_string();
        assert!(refused.contains("pixels where at most 67108864, and 32768 a side"), "{refused}");
    }
    assert!(grey_png(3, 2, &[0; 5]).is_err());
}
