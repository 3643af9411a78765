//! The library on CPU workers: codes, kernels, layers, models, pools, faults and the scheduler.

mod codes;
mod coding;
mod computed;
mod cpu_depthwise;
mod cpu_kernels;
mod cpu_winograd;
mod engine;
mod exactness;
mod fated;
mod faults;
mod integers;
#[cfg(feature = "onnx")]
mod model;
mod parts;
mod pool;
mod replicas;
mod rows;
mod scheduling;
mod scripted;
mod sharing;
mod virtual_time;
mod watch;
mod worker_contract;
