//! Detects the content of a file by its first bytes, never by its name.

/// Number of first bytes that are examined.
pub(crate) const HEAD: usize = 64;
/// The first bytes of a .npy array.
pub(crate) const NPY: &[u8] = b"\x93NUMPY";

/// The content of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// A .npy array.
    Npy,
    /// A zip archive, which may hold arrays.
    Zip,
    /// A picture that can be decoded.
    Picture(Format),
    /// Something else, described in words.
    Other(String),
}

/// Picture formats that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
    WebP,
    Bmp,
    Tiff,
}

impl Format {
    /// The usual name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }

    /// The format of a picture with these first bytes.
    fn of(head: &[u8]) -> Option<Self> {
        const STARTS: [(&[u8], Format); 6] = [
            (b"\xff\xd8\xff", Format::Jpeg),
            (b"\x89PNG\r\n\x1a\n", Format::Png),
            (b"BM", Format::Bmp),
            (b"II*\0", Format::Tiff),
            (b"MM\0*", Format::Tiff),
            // A container of other data too; the type follows a length.
            (b"RIFF", Format::WebP),
        ];
        let (_, format) = STARTS.iter().find(|(start, _)| head.starts_with(start))?;
        (*format != Self::WebP || head.get(8..12) == Some(b"WEBP")).then_some(*format)
    }
}

/// First bytes of other common formats.
const KNOWN: &[(&[u8], &str)] = &[
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"GIF87a", "a picture of type GIF"),
    (b"GIF89a", "a picture of type GIF"),
    (b"\x00\x00\x01\x00", "a picture of type ICO"),
    (b"#?RADIANCE", "a picture of type HDR"),
    (b"DDS ", "a picture of type DDS"),
    (b"\x76\x2f\x31\x01", "a picture of type OpenEXR"),
    (b"farbfeld", "a picture of type farbfeld"),
    (b"qoif", "a picture of type QOI"),
    (b"P1", "a picture of type PNM"),
    (b"P2", "a picture of type PNM"),
    (b"P3", "a picture of type PNM"),
    (b"P4", "a picture of type PNM"),
    (b"P5", "a picture of type PNM"),
    (b"P6", "a picture of type PNM"),
    (b"P7", "a picture of type PNM"),
    (b"\x1f\x8b", "a gzip file (unpack it)"),
    (b"\xfd7zXZ", "an xz file (unpack it)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file (unpack it)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive (unpack it)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"MATLAB", "a MATLAB file"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
    (b"version https://git-lfs", "a pointer of Git LFS (fetch the file itself with git lfs pull)"),
];

/// The content of a file with these first bytes.
pub(crate) fn of(head: &[u8]) -> Content {
    if head.starts_with(NPY) {
        return Content::Npy;
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Content::Zip;
    }
    if let Some(format) = Format::of(head) {
        return Content::Picture(format);
    }
    if let Some((_, what)) = KNOWN.iter().find(|(start, _)| head.starts_with(start)) {
        return Content::Other((*what).to_owned());
    }
    // ISO media files: the type follows a length.
    if head.get(4..8) == Some(b"ftyp") {
        let brand = String::from_utf8_lossy(&head[8..head.len().min(12)]).into_owned();
        let what = match brand.get(..3).unwrap_or_default() {
            "hei" | "mif" => "HEIF picture",
            "avi" => "AVIF picture",
            _ => "media file",
        };
        return Content::Other(format!("a {what} of type {brand:?}"));
    }
    if head.is_empty() {
        return Content::Other("empty, 0 bytes".to_owned());
    }
    let text = std::str::from_utf8(head).or_else(|e| match e.error_len() {
        // The data end within a character.
        None => std::str::from_utf8(&head[..e.valid_up_to()]),
        Some(_) => Err(e),
    });
    let plain = |c: char| !c.is_control() || c.is_whitespace();
    if let Ok(text) = text
        && text.chars().all(plain)
    {
        let start: String = text.trim().chars().take(20).collect();
        return Content::Other(format!("a text that begins with {start:?}"));
    }
    let start: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Content::Other(format!("of an unknown type (it begins with {})", start.join(" ")))
}

impl Content {
    /// For messages: `a .npy array`, `a PNG picture`.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Npy => "a .npy array".to_owned(),
            Self::Zip => "a zip archive".to_owned(),
            Self::Picture(format) => format!("a {} picture", format.name()),
            Self::Other(what) => what.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_told_by_their_first_bytes() {
        for (head, says) in [
            (&b"\x93NUMPY\x01\x00"[..], "a .npy array"),
            (b"PK\x03\x04....", "a zip archive"),
            (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
            (b"\xff\xd8\xff\xe0", "a JPEG picture"),
            (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "a WebP picture"),
            (b"RIFF\x10\x00\x00\x00WAVEfmt ", "unknown type"),
            (b"BM......", "a BMP picture"),
            (b"II*\x00....", "a TIFF picture"),
            (b"MM\x00*....", "a TIFF picture"),
            (b"GIF89a..", "a picture of type GIF"),
            (b"%PDF-1.7", "a PDF document"),
            (b"\x00\x00\x00\x18ftypheic\x00", "HEIF"),
            (b"\x00\x00\x00\x18ftypavif\x00", "AVIF"),
            (b"\x80\x04\x95", "pickle"),
            (b"", "0 bytes"),
            ("größe = 1".as_bytes(), "a text that begins with \"größe"),
            (&"größe".as_bytes()[..3], "a text"),
            (b"\x00\x01\x02", "begins with 00 01 02"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        ] {
            let what = of(head).describe();
            assert!(what.contains(says), "{what}");
        }
    }
}
