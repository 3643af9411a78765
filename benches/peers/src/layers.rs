//! The layers that are compared: every distinct convolution of VGG-16 and ResNet-50 at 224x224, and a few that show
//! cliffs. All in f32 with batch 1, padded as the networks pad them.

use anyhow::Result;
use fcdcc::conv::{ConvParams, ConvShape};

/// What a layer stands for in the summaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// VGG-16 or ResNet-50: what the thresholds are about.
    Net,
    /// Depthwise layers and those of LeNet-5: shown, and summed up on their own.
    Extra,
}

/// One convolution layer with square kernels and equal padding on all sides.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) set: Set,
    pub(crate) shape: ConvShape,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl Layer {
    fn new(
        set: Set,
        net: &str,
        [c, o]: [usize; 2],
        size: usize,
        [k, stride, pad]: [usize; 3],
    ) -> Result<Self> {
        Self::grouped(set, net, [c, o], size, [k, stride, pad], 1)
    }

    pub(crate) fn grouped(
        set: Set,
        net: &str,
        [c, o]: [usize; 2],
        size: usize,
        [kernel, stride, padding]: [usize; 3],
        groups: usize,
    ) -> Result<Self> {
        let params = ConvParams::default().stride([stride]).padding([padding]).groups(groups);
        let shape = ConvShape::new(&[1, c, size, size], &[o, c / groups, kernel, kernel], &params)?;
        let step = if stride > 1 { format!("/{stride}") } else { String::new() };
        let depthwise = if groups > 1 { " dw" } else { "" };
        let name = format!("{net} {c}->{o} {kernel}x{kernel}{step}{depthwise} @{size}");
        Ok(Self { name, set, shape, kernel, stride, padding })
    }

    /// Floating-point operations: two for each multiply-add of the definition, those on padding included.
    pub(crate) fn flops(&self) -> f64 {
        2.0 * self.shape.macs()
    }

    /// Bytes of input, filters and output, each once.
    pub(crate) fn bytes(&self) -> f64 {
        let elems = self.shape.input_elems() + self.shape.weight_elems() + self.shape.output_elems();
        (elems * size_of::<f32>()) as f64
    }

    /// Operations for each of [`Layer::bytes`].
    pub(crate) fn intensity(&self) -> f64 {
        self.flops() / self.bytes()
    }

    /// The class a cliff would show in.
    pub(crate) fn class(&self) -> &'static str {
        match (self.kernel, self.stride) {
            _ if self.shape.groups > 1 => "depthwise 3x3",
            _ if self.set == Set::Extra => "LeNet-5",
            (1, 1) => "1x1",
            (1, _) => "1x1 stride 2",
            (3, 1) => "3x3",
            (3, _) => "3x3 stride 2",
            _ => "7x7 stride 2",
        }
    }
}

/// All layers, in the order of the networks.
pub(crate) fn all() -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    for (channels, size) in [
        ([3, 64], 224),
        ([64, 64], 224),
        ([64, 128], 112),
        ([128, 128], 112),
        ([128, 256], 56),
        ([256, 256], 56),
        ([256, 512], 28),
        ([512, 512], 28),
        ([512, 512], 14),
    ] {
        layers.push(Layer::new(Set::Net, "vgg16", channels, size, [3, 1, 1])?);
    }
    let mut resnet = |channels, size, window| -> Result<()> {
        layers.push(Layer::new(Set::Net, "resnet50", channels, size, window)?);
        Ok(())
    };
    let (pointwise, spatial) = ([1, 1, 0], [3, 1, 1]);
    resnet([3, 64], 224, [7, 2, 3])?;
    for (channels, window) in
        [([64, 64], pointwise), ([64, 64], spatial), ([64, 256], pointwise), ([256, 64], pointwise)]
    {
        resnet(channels, 56, window)?;
    }
    // A stage halves the picture in the 3x3 convolution of its first block and in the shortcut beside it.
    for (width, size) in [(128, 56), (256, 28), (512, 14)] {
        resnet([2 * width, width], size, pointwise)?;
        resnet([width, width], size, [3, 2, 1])?;
        resnet([2 * width, 4 * width], size, [1, 2, 0])?;
        resnet([width, 4 * width], size / 2, pointwise)?;
        resnet([4 * width, width], size / 2, pointwise)?;
        resnet([width, width], size / 2, spatial)?;
    }
    for stride in [1, 2] {
        layers.push(Layer::grouped(Set::Extra, "mobilenet", [144, 144], 56, [3, stride, 1], 144)?);
    }
    for (channels, size, padding) in [([1, 6], 28, 2), ([6, 16], 14, 0), ([16, 120], 5, 0)] {
        layers.push(Layer::new(Set::Extra, "lenet5", channels, size, [5, 1, padding])?);
    }
    Ok(layers)
}
