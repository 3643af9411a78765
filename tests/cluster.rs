//! smoke
use fcdcc::cluster::*;
use fcdcc::{CodedConv, ConvParams, CpuWorker, LayerOptions, Pool};
use ndarray::ArrayD;
use std::time::{Duration, Instant};

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn smoke() {
    let port = port();
    let endpoint: Endpoint = format!("127.0.0.1:{port}").parse().unwrap();
    let t = Instant::now();
    let cluster =
        Cluster::open(&ClusterOptions { listen: vec![endpoint.clone()], ..Default::default() }).unwrap();
    println!("opened {:?}", t.elapsed());
    let server = WorkerServer::start(
        CpuWorker::fleet(6),
        &ServeOptions {
            name: "alpha".into(),
            cluster: "default".into(),
            listen: vec![],
            connect: vec![endpoint.clone()],
            security: Security::default(),
            masters: vec![],
            memory_bytes: 1 << 30,
            cache: None,
        },
    )
    .unwrap();
    println!("served {:?}", t.elapsed());
    let workers = cluster.workers(&[Seats { machine: None, count: Some(6) }], Duration::from_secs(5));
    println!("joined {:?} {:?}", t.elapsed(), workers.iter().map(|w| w.info().device).collect::<Vec<_>>());
    let pool = Pool::new(workers).unwrap();
    for (c, h) in [(2usize, 8usize), (64, 56), (128, 112)] {
        let input = ArrayD::<f32>::ones(vec![1, c, h, h]);
        let weight = ArrayD::<f32>::ones(vec![c, c, 3, 3]);
        let local = Pool::new(CpuWorker::fleet(6)).unwrap();
        for pool in [&pool, &local] {
            let t = Instant::now();
            let layer = CodedConv::prepare(
                pool,
                input.shape(),
                weight.view(),
                None,
                &ConvParams::default().padding([1]),
                LayerOptions::default(),
            )
            .unwrap();
            println!("prepared {:?}", t.elapsed());
            let mut times = vec![];
            for _ in 0..30 {
                let t = Instant::now();
                let run = layer.run(input.view()).unwrap();
                times.push(t.elapsed());
                if times.len() == 30 {
                    println!(
                        "{:?} {} {:?}",
                        run.report.completion,
                        run.report.backend,
                        run.report.workers.iter().map(|w| w.outcome).collect::<Vec<_>>()
                    );
                }
            }
            times.sort();
            println!("run {:?} .. {:?} .. {:?}", times[0], times[15], times[29]);
        }
    }
    println!("{:?}", survey(&endpoint, "default", &Security::default(), Duration::from_secs(2)).unwrap());
    println!("{:?}", server.traffic());
    let t = Instant::now();
    drop(server);
    println!("server dropped {:?}", t.elapsed());
    drop(pool);
    drop(cluster);
    println!("all dropped {:?}", t.elapsed());
}
