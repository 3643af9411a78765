//! Lists the GPU adapters of this machine and selects among them.
//!
//! [`adapters`] describes every adapter that wgpu finds; [`select`] filters them by the user's selector. `WGPU_BACKEND`
//! (e.g. `vulkan`) restricts the backends, and `WGPU_ADAPTER_NAME` names the adapter if the caller names none.
//!
//! Invariant: driver failures never cause a panic here, and two calls list the same adapters in the same order.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

use crate::error::{Error, Result};

/// Properties and limits of an adapter. Serialises to the objects of `fcdcc devices --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterSummary {
    /// Position among the adapters found, used to select it.
    pub index: usize,
    /// Name reported by the driver.
    pub name: String,
    /// PCI vendor id (or the backend's substitute).
    pub vendor: u32,
    /// PCI device id.
    pub device: u32,
    /// `vulkan`, `metal`, `dx12` or `gl`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub device_type: &'static str,
    /// Driver name.
    pub driver: String,
    /// Driver version, human-readable.
    pub driver_info: String,
    /// Whether it computes on the CPU (lavapipe, SwiftShader, WARP).
    pub software: bool,
    /// Optional features.
    pub features: AdapterFeatures,
    /// Size limits.
    pub limits: AdapterLimits,
}

/// Optional features of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent abilities, one flag each")]
pub struct AdapterFeatures {
    /// 64-bit floats in shaders.
    pub f64: bool,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Subgroup operations in shaders.
    pub subgroup: bool,
    /// Timestamps on the device's clock.
    pub timestamp: bool,
    /// Buffers used by shaders can be mapped, so that no copies to and from staging buffers are needed.
    pub mappable_primary_buffers: bool,
}

/// Size limits of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterLimits {
    /// Largest range of a buffer that one shader binding can access, in bytes.
    pub max_storage_buffer_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Maximum number of workgroups along one dimension of a dispatch.
    pub max_workgroups_per_dimension: u32,
    /// Maximum number of threads of a workgroup.
    pub max_invocations_per_workgroup: u32,
    /// Shared memory of a workgroup, in bytes.
    pub max_workgroup_storage_bytes: u32,
    /// Smallest number of lanes of a subgroup.
    pub min_subgroup_size: u32,
    /// Largest number of lanes of a subgroup.
    pub max_subgroup_size: u32,
}

/// Selects adapters by position or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterSelector {
    /// Position in the list of [`adapters`]; past the end of that list, part of a name.
    Index(usize),
    /// Part of the name, case-insensitive.
    Name(String),
}

impl From<&str> for AdapterSelector {
    /// A number is an index, anything else part of a name.
    fn from(text: &str) -> Self {
        text.trim().parse().map_or_else(|_| Self::Name(text.trim().to_owned()), Self::Index)
    }
}

impl fmt::Display for AdapterSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => write!(f, "\"{name}\""),
        }
    }
}

impl AdapterSelector {
    fn matches(&self, adapter: &AdapterSummary) -> bool {
        match self {
            Self::Index(index) => adapter.index == *index,
            Self::Name(name) => adapter.name.to_lowercase().contains(&name.to_lowercase()),
        }
    }
}

/// A new instance and its adapters, in an order that is the same at every call.
///
/// The instance is new because all devices of one instance of lavapipe share one thread pool.
pub(super) fn enumerate() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // OpenGL would list the same devices again with fewer compute features. An empty variable names no backend and is
    // treated as unset.
    descriptor.backends = wgpu::Backends::from_env()
        .filter(|named| !named.is_empty())
        .unwrap_or(wgpu::Backends::PRIMARY - wgpu::Backends::BROWSER_WEBGPU);
    let backends = descriptor.backends;
    // `Instance::new` or a driver's loader may panic; the result is then an empty list.
    catch_unwind(AssertUnwindSafe(|| {
        let instance = wgpu::Instance::new(descriptor);
        pollster::block_on(instance.enumerate_adapters(backends))
    }))
    .unwrap_or_default()
}

pub(super) fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    AdapterSummary {
        index,
        vendor: info.vendor,
        device: info.device,
        backend: info.backend.to_str().to_owned(),
        device_type: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "cpu",
            wgpu::DeviceType::Other => "other",
        },
        software: info.device_type == wgpu::DeviceType::Cpu,
        features: AdapterFeatures {
            f64: features.contains(wgpu::Features::SHADER_F64),
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroup: features.contains(wgpu::Features::SUBGROUP),
            timestamp: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            mappable_primary_buffers: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
        },
        limits: AdapterLimits {
            max_storage_buffer_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            max_workgroup_storage_bytes: limits.max_compute_workgroup_storage_size,
            min_subgroup_size: info.subgroup_min_size,
            max_subgroup_size: info.subgroup_max_size,
        },
        name: info.name,
        driver: info.driver,
        driver_info: info.driver_info,
    }
}

/// Every adapter of this machine that wgpu finds; empty if there is none.
#[must_use]
pub fn adapters() -> Vec<AdapterSummary> {
    enumerate().iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

/// The adapters that match `selector`; without one, those that match `WGPU_ADAPTER_NAME`; without that, all real GPUs,
/// or the software adapters if there is no real GPU. Never empty.
///
/// # Errors
/// [`Error::Unavailable`], listing the available adapters, when none matches.
pub fn select(selector: Option<&AdapterSelector>) -> Result<Vec<AdapterSummary>> {
    let all = adapters();
    let from_env = std::env::var("WGPU_ADAPTER_NAME").ok().filter(|name| !name.is_empty());
    let from_env = from_env.map(AdapterSelector::Name);
    let selector = selector.or(from_env.as_ref());
    // "4090" is not a position in the list, so it is part of a name.
    let as_name = match selector {
        Some(AdapterSelector::Index(index)) if *index >= all.len() => {
            Some(AdapterSelector::Name(index.to_string()))
        }
        _ => None,
    };
    let selector = as_name.as_ref().or(selector);
    let real = all.iter().any(|a| !a.software);
    let chosen: Vec<_> =
        all.iter().filter(|a| selector.map_or(a.software != real, |s| s.matches(a))).cloned().collect();
    if chosen.is_empty() { Err(unavailable(selector, &all)) } else { Ok(chosen) }
}

pub(super) fn unavailable(selector: Option<&AdapterSelector>, all: &[AdapterSummary]) -> Error {
    let what = selector.map_or_else(|| "a GPU adapter".to_owned(), |s| format!("GPU adapter {s}"));
    let help = if all.is_empty() {
        "wgpu finds no adapter on this machine: install a Vulkan driver (or mesa-vulkan-drivers for a software \
         one), or use CPU workers"
            .to_owned()
    } else {
        let list: Vec<_> = all.iter().map(|a| format!("{} {} ({})", a.index, a.name, a.backend)).collect();
        format!("there are: {}; name one by its number or part of its name", list.join(", "))
    };
    Error::Unavailable { what, help: help.into() }
}
