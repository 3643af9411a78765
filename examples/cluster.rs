//! A layer on workers of other machines, one of which leaves. Here both machines are in this process, on loopback.
//!
//! ```sh
//! cargo run --release --features full --example cluster
//! ```
#![expect(clippy::print_stdout, reason = "printing is what an example is for")]

use std::time::Duration;

use fcdcc::cluster::{Cluster, ClusterOptions, Endpoint, Seats, Security, ServeOptions, WorkerServer};
use fcdcc::{CodedConv, CpuWorker, Pool, Result};
use ndarray::ArrayD;

/// A machine that lends three workers, like `fcdcc worker --connect ENDPOINT --name NAME --workers 3`.
fn machine(name: &str, master: &Endpoint) -> Result<WorkerServer> {
    let options = ServeOptions {
        name: name.to_owned(),
        cluster: "default".to_owned(),
        listen: Vec::new(),
        connect: vec![master.clone()],
        // Beyond loopback use certificates, see docs/cluster.md.
        security: Security::default(),
        masters: Vec::new(),
        memory_bytes: 1 << 30,
        cache: None,
    };
    WorkerServer::start(CpuWorker::fleet(3), &options)
}

fn main() -> Result<()> {
    let endpoint: Endpoint = "127.0.0.1:7457".parse()?;
    let cluster =
        Cluster::open(&ClusterOptions { listen: vec![endpoint.clone()], ..ClusterOptions::default() })?;
    let alpha = machine("alpha", &endpoint)?;
    let _beta = machine("beta", &endpoint)?;

    // Three devices of each machine. A machine may fill an empty seat later.
    let seats = ["alpha", "beta"].map(|name| Seats {
        machine: Some(name.to_owned()),
        count: Some(3),
        ..Seats::default()
    });
    let pool = Pool::new(cluster.workers(&seats, Duration::from_secs(10)))?;

    let (input, weight) = (ArrayD::<f32>::ones(vec![1, 8, 32, 32]), ArrayD::<f32>::ones(vec![16, 8, 3, 3]));
    // Any three of six subtasks decode, so one machine alone is enough.
    let layer = CodedConv::builder(&pool, input.shape(), weight.view()).tolerate(3).prepare()?;

    let run = layer.run(input.view())?;
    println!("both machines: {} on {} workers", run.report.completion.name(), run.report.backend);
    let before = run.output;

    drop(alpha);
    let run = layer.run(input.view())?;
    let used: Vec<usize> = run.report.used.iter().map(|subtask| subtask.0).collect();
    println!("without alpha: {}, from subtasks {used:?}", run.report.completion.name());
    let largest = (&run.output - &before).iter().fold(0.0f32, |most, d| most.max(d.abs()));
    println!("the outputs differ by at most {largest:.1e} of 72");
    Ok(())
}
