//! How pictures become input: the options, and presets for usual trainings.
//!
//! Invariant: an option that is given wins over the preset, whatever their order.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use fcdcc::{Error, Result};
use serde::Deserialize;

/// How a picture of other proportions comes to the input's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fit {
    /// Scale until it covers the input, cut what hangs over
    #[default]
    Crop,
    /// Scale until its shorter side is 256/224 of the input's, cut out the middle
    Center,
    /// Scale each axis by itself
    Stretch,
    /// Scale until it fits, fill the rest with --fill
    Pad,
}

/// Order of the axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PixelLayout {
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
pub(crate) enum Color {
    /// Red first; grey where the input has one channel
    #[default]
    Rgb,
    /// Blue first
    Bgr,
}

/// Values of the options for usual trainings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Preset {
    /// --fit crop --range 1 --mean 0 --std 1 --color rgb --fill 0
    #[default]
    None,
    /// As torchvision: --fit center --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    Imagenet,
    /// As Caffe: --range 255 --color bgr --mean 104,117,123
    Caffe,
    /// As YOLO (letterbox): --fit pad --fill 114
    Yolo,
}

/// Numbers separated by commas: one for all channels, or one per channel.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Vec<f32>")]
pub(crate) struct PerChannel(pub(crate) Vec<f32>);

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
    pub(crate) fn at(&self, channel: usize) -> f32 {
        self.0[if self.0.len() == 1 { 0 } else { channel }]
    }

    fn reversed(mut self) -> Self {
        self.0.reverse();
        self
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
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[command(next_help_heading = "Pictures")]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PictureArgs {
    /// Values for the options below, each of which replaces the value of the preset [default: none]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// How pictures of other proportions are fitted [default: crop]
    #[arg(long, value_enum)]
    fit: Option<Fit>,
    /// Grey of the padding of --fit pad, 0 to 255 [default: 0]
    #[arg(long, value_name = "GREY")]
    fill: Option<u8>,
    /// Pixels become 0 to R [default: 1]
    #[arg(long, value_name = "R")]
    range: Option<f32>,
    /// Subtracted then, one number or one a channel (ImageNet: 0.485,0.456,0.406) [default: 0]
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    mean: Option<PerChannel>,
    /// Divided by then (ImageNet: 0.229,0.224,0.225) [default: 1]
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    std: Option<PerChannel>,
    /// Order of the input's axes [default: auto]
    #[arg(long, value_enum)]
    layout: Option<PixelLayout>,
    /// Order of the input's channels [default: rgb]
    #[arg(long, value_enum)]
    color: Option<Color>,
}

/// The options with all values known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) fit: Fit,
    /// From 0 to 1.
    pub(crate) fill: f32,
    pub(crate) range: f32,
    /// In the order of the input's channels, as `std`.
    pub(crate) mean: PerChannel,
    pub(crate) std: PerChannel,
    pub(crate) layout: PixelLayout,
    pub(crate) color: Color,
    /// Names of the options that mean and standard deviation come from, for errors.
    names: [&'static str; 2],
}

impl Settings {
    fn of(preset: Preset) -> Self {
        let plain = Self {
            fit: Fit::Crop,
            fill: 0.0,
            range: 1.0,
            mean: PerChannel(vec![0.0]),
            std: PerChannel(vec![1.0]),
            layout: PixelLayout::Auto,
            color: Color::Rgb,
            names: ["--mean", "--std"],
        };
        match preset {
            Preset::None => plain,
            Preset::Imagenet => Self {
                fit: Fit::Center,
                mean: PerChannel(vec![0.485, 0.456, 0.406]),
                std: PerChannel(vec![0.229, 0.224, 0.225]),
                names: ["--mean of --preset imagenet", "--std of --preset imagenet"],
                ..plain
            },
            Preset::Caffe => Self {
                range: 255.0,
                mean: PerChannel(vec![104.0, 117.0, 123.0]),
                color: Color::Bgr,
                names: ["--mean of --preset caffe", "--std of --preset caffe"],
                ..plain
            },
            Preset::Yolo => Self { fit: Fit::Pad, fill: 114.0 / 255.0, ..plain },
        }
    }

    /// Checks the values for an input of `channels` channels.
    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        self.mean.check(self.names[0], channels)?;
        self.std.check(self.names[1], channels)?;
        if self.std.0.contains(&0.0) {
            return Err(Error::invalid("standard deviation (--std)", 0, "divide by something above zero"));
        }
        Ok(())
    }
}

impl PictureArgs {
    /// The values of the preset, replaced by those that are given.
    pub(crate) fn settings(&self) -> Settings {
        let preset = Settings::of(self.preset.unwrap_or_default());
        let color = self.color.unwrap_or(preset.color);
        // Numbers of a preset are for its own order of channels.
        let ordered = |numbers: PerChannel| if color == preset.color { numbers } else { numbers.reversed() };
        Settings {
            fit: self.fit.unwrap_or(preset.fit),
            fill: self.fill.map_or(preset.fill, |fill| f32::from(fill) / 255.0),
            range: self.range.unwrap_or(preset.range),
            names: [
                if self.mean.is_some() { "--mean" } else { preset.names[0] },
                if self.std.is_some() { "--std" } else { preset.names[1] },
            ],
            mean: self.mean.clone().unwrap_or_else(|| ordered(preset.mean)),
            std: self.std.clone().unwrap_or_else(|| ordered(preset.std)),
            layout: self.layout.unwrap_or(preset.layout),
            color,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        picture: PictureArgs,
    }

    fn from_line(args: &str) -> Settings {
        Line::try_parse_from(std::iter::once("x").chain(args.split_whitespace())).unwrap().picture.settings()
    }

    fn from_table(text: &str) -> Settings {
        toml::from_str::<PictureArgs>(text).unwrap().settings()
    }

    #[test]
    fn given_options_replace_those_of_the_preset() {
        assert_eq!(from_line(""), Settings::of(Preset::None));
        assert_eq!(from_line("--preset yolo"), Settings::of(Preset::Yolo));
        let mixed = from_line("--mean 0.5 --preset imagenet --fit stretch");
        let imagenet = Settings::of(Preset::Imagenet);
        assert_eq!(
            (mixed.fit, &mixed.mean, &mixed.std),
            (Fit::Stretch, &PerChannel(vec![0.5]), &imagenet.std)
        );
        assert_eq!(from_line("--preset caffe --range 1").mean, Settings::of(Preset::Caffe).mean);
        assert_eq!(from_line("--preset yolo --fill 0").fill, 0.0);
        // A table of model.toml means the same.
        assert_eq!(from_table("preset = 'imagenet'\nfit = 'stretch'\nmean = [0.5]"), mixed);
        assert!(toml::from_str::<PictureArgs>("preset = 'imagnet'").is_err());
    }

    #[test]
    fn numbers_of_a_preset_follow_the_colours() {
        assert_eq!(from_line("--preset imagenet --color bgr").mean.0, [0.406, 0.456, 0.485]);
        assert_eq!(from_line("--preset caffe --color rgb").mean.0, [123.0, 117.0, 104.0]);
        assert_eq!(from_line("--preset caffe --color bgr").mean.0, [104.0, 117.0, 123.0]);
        // Numbers that are given are in the order of the input.
        assert_eq!(from_line("--preset imagenet --color bgr --mean 1,2,3").mean.0, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn numbers_that_do_not_fit_are_named_with_their_source() {
        let said = |args: &str, channels| from_line(args).check(channels).unwrap_err().to_string();
        assert!(said("--preset imagenet", 1).contains("values of --mean of --preset imagenet is 3 where 1"));
        assert!(said("--mean 1,2", 3).contains("values of --mean is 2 where 1 or 3"));
        assert!(said("--std 0", 3).contains("--std"));
        assert!(from_line("--preset yolo").check(1).is_ok());
    }
}
