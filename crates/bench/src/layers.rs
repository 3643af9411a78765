//! The catalogue of convolutions to measure: those of well-known networks.
//!
//! Invariant: a [`NamedLayer`] has a valid shape.

use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::error::{Error, Result};

/// One convolution of a network.
#[derive(Clone, Debug)]
pub struct NamedLayer {
    /// `network/layer`, e.g. `vgg16/conv3_2`.
    pub name: String,
    /// Its shape, for a batch of one.
    pub shape: ConvShape,
    /// How often the network has this layer.
    pub count: usize,
}

/// (name, channels, height = width, filters, kernel, stride, padding, groups, count)
type Row = (&'static str, usize, usize, usize, usize, usize, usize, usize, usize);

/// LeCun et al. 1998, on 32 x 32 pictures; the second layer is fully connected between channels.
const LENET5: [Row; 3] = [
    ("conv1", 1, 32, 6, 5, 1, 0, 1, 1),
    ("conv2", 6, 14, 16, 5, 1, 0, 1, 1),
    ("conv3", 16, 5, 120, 5, 1, 0, 1, 1),
];

/// Krizhevsky et al. 2012, in one tower, on 227 x 227 pictures, as the FCDCC paper has it.
const ALEXNET: [Row; 5] = [
    ("conv1", 3, 227, 96, 11, 4, 0, 1, 1),
    ("conv2", 96, 27, 256, 5, 1, 2, 1, 1),
    ("conv3", 256, 13, 384, 3, 1, 1, 1, 1),
    ("conv4", 384, 13, 384, 3, 1, 1, 1, 1),
    ("conv5", 384, 13, 256, 3, 1, 1, 1, 1),
];

/// Simonyan and Zisserman 2014, configuration D; equal layers are listed once.
const VGG16: [Row; 9] = [
    ("conv1_1", 3, 224, 64, 3, 1, 1, 1, 1),
    ("conv1_2", 64, 224, 64, 3, 1, 1, 1, 1),
    ("conv2_1", 64, 112, 128, 3, 1, 1, 1, 1),
    ("conv2_2", 128, 112, 128, 3, 1, 1, 1, 1),
    ("conv3_1", 128, 56, 256, 3, 1, 1, 1, 1),
    ("conv3_2", 256, 56, 256, 3, 1, 1, 1, 2),
    ("conv4_1", 256, 28, 512, 3, 1, 1, 1, 1),
    ("conv4_2", 512, 28, 512, 3, 1, 1, 1, 2),
    ("conv5_1", 512, 14, 512, 3, 1, 1, 1, 3),
];

/// He et al. 2015, with the stride in the 3x3 convolution of a block (as in most implementations); equal layers are
/// listed once.
const RESNET50: [Row; 23] = [
    ("conv1", 3, 224, 64, 7, 2, 3, 1, 1),
    ("conv2_reduce_first", 64, 56, 64, 1, 1, 0, 1, 1),
    ("conv2_3x3", 64, 56, 64, 3, 1, 1, 1, 3),
    ("conv2_expand", 64, 56, 256, 1, 1, 0, 1, 4),
    ("conv2_reduce", 256, 56, 64, 1, 1, 0, 1, 2),
    ("conv3_reduce_first", 256, 56, 128, 1, 1, 0, 1, 1),
    ("conv3_3x3_down", 128, 56, 128, 3, 2, 1, 1, 1),
    ("conv3_shortcut", 256, 56, 512, 1, 2, 0, 1, 1),
    ("conv3_expand", 128, 28, 512, 1, 1, 0, 1, 4),
    ("conv3_reduce", 512, 28, 128, 1, 1, 0, 1, 3),
    ("conv3_3x3", 128, 28, 128, 3, 1, 1, 1, 3),
    ("conv4_reduce_first", 512, 28, 256, 1, 1, 0, 1, 1),
    ("conv4_3x3_down", 256, 28, 256, 3, 2, 1, 1, 1),
    ("conv4_shortcut", 512, 28, 1024, 1, 2, 0, 1, 1),
    ("conv4_expand", 256, 14, 1024, 1, 1, 0, 1, 6),
    ("conv4_reduce", 1024, 14, 256, 1, 1, 0, 1, 5),
    ("conv4_3x3", 256, 14, 256, 3, 1, 1, 1, 5),
    ("conv5_reduce_first", 1024, 14, 512, 1, 1, 0, 1, 1),
    ("conv5_3x3_down", 512, 14, 512, 3, 2, 1, 1, 1),
    ("conv5_shortcut", 1024, 14, 2048, 1, 2, 0, 1, 1),
    ("conv5_expand", 512, 7, 2048, 1, 1, 0, 1, 3),
    ("conv5_reduce", 2048, 7, 512, 1, 1, 0, 1, 2),
    ("conv5_3x3", 512, 7, 512, 3, 1, 1, 1, 2),
];

const NETWORKS: [(&str, &[Row]); 4] =
    [("lenet5", &LENET5), ("alexnet", &ALEXNET), ("vgg16", &VGG16), ("resnet50", &RESNET50)];

/// The names that [`network`] accepts.
#[must_use]
pub fn networks() -> [&'static str; 4] {
    NETWORKS.map(|(name, _)| name)
}

/// The convolutions of a network in order; equal ones are listed once.
///
/// # Errors
/// [`Error::InvalidParameter`] for an unknown name, with the known ones.
pub fn network(name: &str) -> Result<Vec<NamedLayer>> {
    let rows = NETWORKS.iter().find(|(known, _)| *known == name).map(|(_, rows)| *rows);
    let rows = rows.ok_or_else(|| {
        Error::invalid("network", format!("{name:?}"), format!("known networks: {}", networks().join(", ")))
    })?;
    rows.iter()
        .map(|&(layer, channels, size, filters, kernel, stride, padding, groups, count)| {
            let params = ConvParams::default().stride([stride]).padding([padding]).groups(groups);
            let shape = ConvShape::new(
                &[1, channels, size, size],
                &[filters, channels / groups, kernel, kernel],
                &params,
            )?;
            Ok(NamedLayer { name: format!("{name}/{layer}"), shape, count })
        })
        .collect()
}

/// Layers by name, separated by commas: a network (`vgg16`) or one of its layers (`vgg16/conv3_2`).
///
/// # Errors
/// [`Error::InvalidParameter`] for an unknown name, with the known ones.
pub fn resolve(names: &str) -> Result<Vec<NamedLayer>> {
    let mut layers = Vec::new();
    for name in names.split(',').map(str::trim) {
        let (of, one) = name.split_once('/').map_or((name, None), |(network, _)| (network, Some(name)));
        let all = network(of)?;
        let known: Vec<String> = all.iter().map(|l| l.name.clone()).collect();
        let before = layers.len();
        layers.extend(all.into_iter().filter(|l| one.is_none_or(|one| l.name == one)));
        if layers.len() == before {
            return Err(Error::invalid(
                "layer",
                format!("{name:?}"),
                format!("known layers: {}", known.join(", ")),
            ));
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_have_the_multiply_adds_they_are_known_for() {
        // Multiply-adds of the convolutions alone, in millions: 0.42 (LeNet-5 with its last convolution), 1077 (AlexNet
        // in one tower), 15347 (VGG-16), 4087 (ResNet-50).
        for (name, millions) in
            [("lenet5", 0.4), ("alexnet", 1077.0), ("vgg16", 15_347.0), ("resnet50", 4087.0)]
        {
            let layers = network(name).unwrap();
            let macs: f64 = layers.iter().map(|l| l.shape.macs() * l.count as f64).sum();
            assert!((macs / 1e6 / millions - 1.0).abs() < 0.06, "{name}: {} million", macs / 1e6);
        }
        let convolutions = |name| network(name).unwrap().iter().map(|l| l.count).sum::<usize>();
        assert_eq!((convolutions("vgg16"), convolutions("resnet50")), (13, 53));
        assert_eq!(resolve("lenet5, vgg16/conv3_2").unwrap().len(), 4);
        assert!(resolve("vgg16/conv9").unwrap_err().to_string().contains("vgg16/conv1_1"));
        let error = network("vgg17").unwrap_err().to_string();
        assert!(error.contains("vgg17") && error.contains("vgg16, resnet50"), "{error}");
    }
}
