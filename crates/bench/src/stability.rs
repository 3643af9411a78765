//! The study behind `fcdcc stability`: condition numbers of every code family, and their effect on real convolutions.
//!
//! [`Options`] selects what [`run`] computes. Invariant: all figures depend on the options alone; time and the machine
//! are in the [`Environment`] only.

use std::collections::HashMap;

use super::coding_errors::{Computed, Deviation, Numbers};
use super::conditions::{Room, Survey, comparable, survey};
use super::flags::with_flags;
use super::layers::{NamedLayer, resolve};
use super::responder_sets::{MissingSets, Sampling, responders};
use super::schema::{Conditions, Environment};
use super::stability_findings::findings;
use super::stability_record::{
    CodingError, ConditionTable, HostLoss, LeftOut, SCHEMA, StabilityReport, Sweep, Waiting,
};
use fcdcc::array::{DType, Element};
use fcdcc::coding::{Code, CodeKind};
use fcdcc::error::{Error, Result};

/// Maximum number of subtasks; beyond it, one condition number takes seconds.
const MAX_N: usize = 256;
/// Maximum number of responder sets of one code.
const MAX_SETS: usize = 1_000_000;

/// (k_A, k_B, n) of CRME as layers use it.
const CRME: [(usize, usize, usize); 7] =
    [(4, 4, 5), (4, 4, 6), (4, 8, 10), (8, 8, 18), (8, 8, 20), (2, 32, 20), (8, 8, 24)];

/// Rules that give delta for n in the sweep.
const RULES: [(&str, fn(usize) -> usize); 4] = [
    ("n - delta = 1", |n| n - 1),
    ("n - delta = 2", |n| n - 2),
    ("n - delta = 4", |n| n - 4),
    ("delta = 0.8 n", |n| (4 * n + 2) / 5),
];

/// What to compute.
#[derive(Clone, Debug)]
pub struct Options {
    /// (n, delta) of the condition tables.
    pub cells: Vec<(usize, usize)>,
    /// Code families, in the order of the tables.
    pub codes: Vec<CodeKind>,
    /// Responder sets of the tables and of [`Options::waiting`].
    pub sampling: Sampling,
    /// n of the sweep, at least 5; empty for no sweep.
    pub sweep: Vec<usize>,
    /// Responder sets of each point of the sweep.
    pub sweep_sampling: Sampling,
    /// (n, delta) for which the number of awaited responders is varied.
    pub waiting: Option<(usize, usize)>,
    /// (n, delta, hosts) for the loss of one host.
    pub hosts: Option<(usize, usize, usize)>,
    /// Whether to study CRME by partitions too.
    pub crme: bool,
    /// Layers to convolve.
    pub layers: Vec<NamedLayer>,
    /// (n, delta) of the codes for these layers.
    pub error_cells: Vec<(usize, usize)>,
    /// Precisions of the convolutions.
    pub precisions: Vec<DType>,
    /// Number of random responder sets decoded besides the median and the worst one.
    pub random_sets: usize,
}

impl Options {
    /// The whole study: the paper's (n, delta) and layers.
    #[must_use]
    pub fn paper(seed: u64) -> Self {
        Self {
            cells: vec![(6, 4), (18, 16), (20, 16), (31, 28), (40, 32)],
            codes: CodeKind::ALL.to_vec(),
            sampling: Sampling { limit: 20_000, samples: 2000, seed },
            sweep: (5..=60).collect(),
            sweep_sampling: Sampling { limit: 200, samples: 150, seed },
            waiting: Some((24, 16)),
            hosts: Some((20, 16, 5)),
            crme: true,
            layers: resolve("alexnet,vgg16/conv4_1").expect("known layers"),
            error_cells: vec![(20, 16), (6, 4)],
            precisions: vec![DType::F32, DType::F64],
            random_sets: 20,
        }
    }

    /// A study with a little of everything, in seconds.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self {
            cells: vec![(6, 4), (20, 16)],
            sampling: Sampling { limit: 500, samples: 200, seed },
            sweep: vec![5, 10, 20, 30, 40],
            sweep_sampling: Sampling { limit: 30, samples: 20, seed },
            layers: resolve("lenet5/conv2,alexnet/conv5").expect("known layers"),
            error_cells: vec![(20, 16)],
            random_sets: 3,
            ..Self::paper(seed)
        }
    }

    /// This study for `cells` alone, without a sweep.
    #[must_use]
    pub fn at(self, cells: Vec<(usize, usize)>) -> Self {
        Self {
            sweep: Vec::new(),
            waiting: cells.first().copied(),
            hosts: None,
            crme: false,
            error_cells: cells.clone(),
            cells,
            ..self
        }
    }

    /// Checks that all of this can be computed.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for an option that cannot be computed.
    pub fn check(&self) -> Result<()> {
        let used = self.cells.iter().chain(&self.error_cells).chain(&self.waiting);
        for &(n, delta) in used {
            if !(1..=MAX_N).contains(&n) {
                return Err(Error::invalid("number of subtasks n", n, format!("use 1 to {MAX_N}")));
            }
            if delta == 0 || delta > n {
                return Err(Error::invalid("delta", delta, format!("use 1 to n = {n}")));
            }
        }
        if let Some(n) = self.sweep.iter().find(|n| !(5..=MAX_N).contains(*n)) {
            return Err(Error::invalid("n of the sweep", n, format!("use 5 to {MAX_N}")));
        }
        for sampling in [&self.sampling, &self.sweep_sampling] {
            if !(1..=MAX_SETS).contains(&sampling.samples) {
                let help = format!("use 1 to {MAX_SETS}");
                return Err(Error::invalid("number of samples (--samples)", sampling.samples, help));
            }
            if sampling.limit > MAX_SETS {
                let help = format!("use at most {MAX_SETS}");
                return Err(Error::invalid("most sets looked at one by one (--limit)", sampling.limit, help));
            }
        }
        if self.cells.is_empty() || self.codes.is_empty() {
            return Err(Error::invalid("study", "empty", "name at least one (n, delta) and one code"));
        }
        Ok(())
    }

    /// Number of steps that [`run`] reports.
    fn steps(&self) -> usize {
        let waits = self.waiting.map_or(0, |(n, delta)| n - delta + 1);
        let errors = self.error_cells.len() * self.layers.len() * self.precisions.len();
        let tables = self.cells.len() + usize::from(self.crme);
        tables + RULES.len() * self.sweep.len() + waits + usize::from(self.hosts.is_some()) + errors
    }
}

/// Runs the whole study. `observe` receives the number of completed steps, their total, and the name of the last step.
///
/// # Errors
/// The errors of [`Options::check`], before anything is computed.
pub fn run(
    options: &Options,
    setting: Environment,
    observe: &mut dyn FnMut(usize, usize, &str),
) -> Result<StabilityReport> {
    options.check()?;
    let mut study = Study { options, left_out: Vec::new(), done: 0, observe };
    let mut report = StabilityReport {
        schema: SCHEMA,
        setting,
        tables: study.tables()?,
        sweep: study.sweep(),
        responders: study.waiting(),
        hosts: study.hosts(),
        errors: study.errors()?,
        left_out: Vec::new(),
        findings: Vec::new(),
    };
    report.left_out = study.left_out;
    report.left_out.dedup();
    report.findings = findings(&report);
    Ok(report)
}

struct Study<'a> {
    options: &'a Options,
    left_out: Vec<LeftOut>,
    done: usize,
    observe: &'a mut dyn FnMut(usize, usize, &str),
}

impl Study<'_> {
    fn step(&mut self, about: &str) {
        self.done += 1;
        (self.observe)(self.done, self.options.steps(), about);
    }

    /// The code families that encode by linear combinations; the condition numbers of the others are trivial.
    fn mixing(&self) -> impl Iterator<Item = CodeKind> + use<> {
        self.options.codes.clone().into_iter().filter(|kind| kind.mixes())
    }

    /// The code; if there is none, records the reason and returns `None`.
    fn code(&mut self, kind: CodeKind, (n, delta): (usize, usize), room: Room, layer: &str) -> Option<Code> {
        match comparable(kind, n, delta, room) {
            Ok(code) => Some(code),
            Err(error) => {
                let what = format!("{kind}, n = {n}, delta = {delta}{layer}");
                self.left_out.push(LeftOut { what, reason: with_flags(error).to_string() });
                None
            }
        }
    }

    fn tables(&mut self) -> Result<Vec<ConditionTable>> {
        let options = self.options;
        let mut tables = Vec::new();
        for &(n, delta) in &options.cells {
            let label = format!("n = {n}, delta = {delta}");
            let codes: Vec<Code> =
                options.codes.iter().filter_map(|kind| self.code(*kind, (n, delta), Room::ANY, "")).collect();
            let of = |code: &Code| survey(code, code.recovery_threshold(), &options.sampling).conditions;
            tables.push(ConditionTable { rows: codes.iter().map(of).collect(), label: label.clone() });
            self.step(&label);
        }
        if options.crme && options.codes.contains(&CodeKind::Crme) {
            let row = |(k_a, k_b, n)| -> Result<Conditions> {
                let code = Code::new(CodeKind::Crme, k_a, k_b, n)?;
                Ok(survey(&code, code.recovery_threshold(), &options.sampling).conditions)
            };
            let rows = CRME.into_iter().map(row).collect::<Result<_>>()?;
            tables.push(ConditionTable { label: "CRME by partitions".to_owned(), rows });
        }
        if options.crme {
            self.step("CRME by partitions");
        }
        Ok(tables)
    }

    fn sweep(&mut self) -> Vec<Sweep> {
        let options = self.options;
        if options.sweep.is_empty() {
            return Vec::new();
        }
        let mut sweeps = Vec::new();
        for (label, delta) in RULES {
            let mut points = Vec::new();
            for &n in &options.sweep {
                let codes = self.mixing().filter_map(|kind| comparable(kind, n, delta(n), Room::ANY).ok());
                for code in codes {
                    points.push(survey(&code, delta(n), &options.sweep_sampling).conditions);
                }
                self.step(&format!("{label}, n = {n}"));
            }
            let place = |c: &Conditions| options.codes.iter().position(|kind| kind.name() == c.code);
            points.sort_by_key(|c| (place(c), c.n));
            sweeps.push(Sweep { label: label.to_owned(), points });
        }
        sweeps
    }

    fn waiting(&mut self) -> Vec<Waiting> {
        let Some((n, delta)) = self.options.waiting else { return Vec::new() };
        let mut all = Vec::new();
        for answered in delta..=n {
            for code in self.mixing().filter_map(|kind| comparable(kind, n, delta, Room::ANY).ok()) {
                let conditions = survey(&code, answered, &self.options.sampling).conditions;
                all.push(Waiting { responders: answered, conditions });
            }
            self.step(&format!("{answered} of {n} responders"));
        }
        all
    }

    fn hosts(&mut self) -> Vec<HostLoss> {
        let Some((n, delta, hosts)) = self.options.hosts else { return Vec::new() };
        let each = n / hosts;
        let codes = self.mixing().filter_map(|kind| comparable(kind, n, delta, Room::ANY).ok());
        let loss = |code: Code| {
            let worst = |held: &dyn Fn(usize) -> Vec<usize>| {
                (0..hosts).map(|host| code.condition(&responders(n, &held(host)))).fold(1.0, f64::max)
            };
            HostLoss {
                code: code.kind().name().to_owned(),
                n,
                hosts,
                adjacent: worst(&|host| (host * each..(host + 1) * each).collect()),
                interleaved: worst(&|host| (host..n).step_by(hosts).collect()),
            }
        };
        let all = codes.map(loss).collect();
        self.step("hosts");
        all
    }

    fn errors(&mut self) -> Result<Vec<CodingError>> {
        let options = self.options;
        let mut errors = Vec::new();
        let mut surveys = HashMap::new();
        for &cell in &options.error_cells {
            for layer in &options.layers {
                let room = Room {
                    rows: layer.shape.output[layer.shape.split_axis()],
                    channels: layer.shape.out_channels / layer.shape.groups,
                };
                let about = format!(", {}", layer.name);
                let codes: Vec<Code> =
                    self.mixing().filter_map(|kind| self.code(kind, cell, room, &about)).collect();
                let sets: Vec<Vec<Chosen>> = codes
                    .iter()
                    .map(|code| {
                        let key = (code.kind(), code.k_a(), code.k_b(), code.n());
                        let survey = surveys
                            .entry(key)
                            .or_insert_with(|| survey(code, code.recovery_threshold(), &options.sampling));
                        chosen(survey, code, options)
                    })
                    .collect();
                let job = Job { layer, codes: &codes, sets: &sets, cell, seed: options.sampling.seed };
                for dtype in &options.precisions {
                    errors.extend(match dtype {
                        DType::F32 => job.measure::<f32>()?,
                        DType::F64 => job.measure::<f64>()?,
                    });
                    self.step(&format!("{} in {dtype}", layer.name));
                }
            }
        }
        Ok(errors)
    }
}

/// The name of a responder set, and its subtasks.
type Chosen = (&'static str, Vec<usize>);

fn chosen(survey: &Survey, code: &Code, options: &Options) -> Vec<Chosen> {
    let (n, missing) = (code.n(), code.tolerated());
    let draw =
        Sampling { limit: 0, samples: options.random_sets, seed: options.sampling.seed.wrapping_add(1) };
    let random = MissingSets::new(n, missing, &draw).typical;
    let mut sets = vec![("median", survey.median.clone()), ("worst", survey.worst.clone())];
    sets.extend(random.iter().map(|missing| ("random", responders(n, missing))));
    sets
}

/// A layer with the codes of one (n, delta).
struct Job<'a> {
    layer: &'a NamedLayer,
    codes: &'a [Code],
    sets: &'a [Vec<Chosen>],
    cell: (usize, usize),
    seed: u64,
}

impl Job<'_> {
    fn measure<T: Element>(&self) -> Result<Vec<CodingError>> {
        let numbers = Numbers::<T>::new(&self.layer.shape, self.seed)?;
        let (n, delta) = self.cell;
        let row = |code: &str, (k_a, k_b), set: &str, condition, found: Deviation| CodingError {
            layer: self.layer.name.clone(),
            code: code.to_owned(),
            n,
            recovery_threshold: delta,
            k_a,
            k_b,
            dtype: T::DTYPE.name().to_owned(),
            set: set.to_owned(),
            condition,
            mse: found.mse,
            relative_l2: found.relative_l2,
            bound: numbers.bound(condition),
        };
        let mut errors = Vec::new();
        // The reference is computed in f64, so f64 has no error of its own to show.
        if T::DTYPE == DType::F32 {
            errors.push(row(CodeKind::Uncoded.name(), (1, 1), "all", 1.0, numbers.uncoded()?));
        }
        for (code, sets) in self.codes.iter().zip(self.sets) {
            let mut computed = Computed::new(&numbers, code)?;
            for (set, responders) in sets {
                let found = computed.deviation(responders)?;
                let condition = code.condition(responders);
                errors.push(row(code.kind().name(), (code.k_a(), code.k_b()), set, condition, found));
            }
        }
        Ok(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stability_record::tests::setting;
    use super::*;

    fn small() -> Options {
        Options {
            cells: vec![(6, 4), (5, 5)],
            sampling: Sampling { limit: 100, samples: 20, seed: 0 },
            sweep: vec![5, 9],
            waiting: Some((8, 6)),
            crme: false,
            layers: resolve("lenet5/conv2,lenet5/conv3").unwrap(),
            error_cells: vec![(6, 4)],
            random_sets: 2,
            ..Options::paper(0)
        }
    }

    #[test]
    fn a_study_has_every_part_and_says_what_it_leaves_out() {
        let mut steps = Vec::new();
        let report =
            run(&small(), setting(), &mut |done, of, about| steps.push((done, of, about.to_owned())))
                .unwrap();
        let last = steps.last().unwrap();
        assert_eq!((last.0, last.1, steps.len()), (last.1, small().steps(), small().steps()));
        // Six families if all subtasks must answer, five if two may be missing.
        assert_eq!(report.tables.iter().map(|t| t.rows.len()).collect::<Vec<_>>(), [5, 6]);
        assert!(report.left_out.iter().any(|out| out.what == "uncoded, n = 6, delta = 4"));
        assert_eq!(report.sweep.len(), 4);
        assert!(report.sweep.iter().all(|sweep| sweep.points.len() == 4 * 2));
        assert_eq!(report.responders.len(), 4 * 3);
        assert!((report.hosts[0].adjacent - 1551.0).abs() < 1.0 && report.hosts[0].interleaved < 7.5);
        // Four codes with four sets in two precisions, for two layers, and an uncoded f32 row.
        assert_eq!(report.errors.len(), 2 * (4 * 4 * 2 + 1));
        for error in &report.errors {
            assert!(error.relative_l2 <= error.bound && error.mse.is_finite(), "{error:?}");
        }
        assert!(!report.findings.is_empty());
        let again = run(&small(), setting(), &mut |_, _, _| {}).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn layers_too_small_for_a_code_are_left_out() {
        let options = Options {
            layers: resolve("lenet5/conv1").unwrap(),
            codes: vec![CodeKind::Crme, CodeKind::KhatriRao],
            precisions: vec![DType::F32],
            ..small().at(vec![(255, 250)])
        };
        let options = Options { waiting: None, cells: vec![(3, 3)], ..options };
        let report = run(&options, setting(), &mut |_, _, _| {}).unwrap();
        assert_eq!(report.errors.len(), 1);
        let about: Vec<&str> = report.left_out.iter().map(|out| &*out.what).collect();
        assert_eq!(about.len(), 2, "{about:?}");
        assert!(about.iter().all(|what| what.ends_with("lenet5/conv1")), "{about:?}");
    }

    #[test]
    fn impossible_studies_are_refused_before_anything_is_computed() {
        let refused = |options: Options| {
            run(&options, setting(), &mut |_, _, _| panic!("nothing is computed")).unwrap_err().to_string()
        };
        let sampling = |samples, limit| Sampling { limit, samples, seed: 0 };
        assert!(refused(small().at(vec![(4, 5)])).contains("delta is 5"));
        assert!(refused(small().at(vec![(4, 0)])).contains("delta is 0"));
        assert!(refused(small().at(vec![(1000, 5)])).contains("1000"));
        assert!(refused(small().at(Vec::new())).contains("empty"));
        assert!(refused(Options { codes: Vec::new(), ..small() }).contains("one code"));
        assert!(refused(Options { sweep: vec![4], ..small() }).contains("5 to 256"));
        assert!(refused(Options { sampling: sampling(0, 5), ..small() }).contains("--samples"));
        assert!(refused(Options { sampling: sampling(5, usize::MAX), ..small() }).contains("--limit"));
        Options::paper(0).check().unwrap();
        Options::quick(0).check().unwrap();
    }
}
