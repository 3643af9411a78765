//! What a `Loop` says, and what is known of its values before it runs.
//!
//! Relevant if you want to know which loops are unrolled ([`loops`](super::loops)), or how the shapes of values that change
//! from one iteration to the next are found.
//!
//! Invariant: what is known of an output holds after any number of iterations that the loop may make.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{GraphProto, NodeProto, type_proto};
use tract_onnx::prelude::{InferenceFact, InferenceModel, Tensor, TractResult};
use tract_onnx::tensor::translate_inference_fact;
use tract_onnx::tract_core::internal::{OutletId, ToDim, bail, tensor0, tensor1};
use tract_onnx::tract_hir::infer::{Factoid, GenericFactoid, InferenceModelExt};

use super::check::called;
use super::inner;
use super::loop_facts::{either, listed, plain, translated};

/// The operator that is parsed here.
pub(super) const NAME: &str = "Loop";
/// Maximum number of iterations of a loop that is unrolled.
const MOST_UNROLLED: usize = 64;
/// Operators that find as many elements as data have. tract gives each of them one symbol for that number when it is parsed,
/// which would stand for the numbers of all iterations at once if they were unrolled.
const COUNTING: [&str; 2] = ["NonZero", "NonMaxSuppression"];
/// Maximum number of nodes that a loop becomes when it is unrolled.
const MOST_NODES: usize = 10_000;
/// Maximum nesting depth of loops. Each loop analyses its body again when more is known of its inputs, so that the time grows
/// with the depth.
const MOST_DEPTH: usize = 4;

/// A parsed node. Its inputs are the trip count and the condition, where it has them, then the carried values, then the
/// values around it that its body reads.
#[derive(Debug)]
pub(super) struct Spec {
    /// The description of the node in messages.
    pub(super) node: String,
    /// Whether it has a trip count.
    pub(super) counted: bool,
    /// Whether it has a condition.
    pub(super) conditional: bool,
    /// Number of values that are carried from one iteration to the next.
    pub(super) carried: usize,
    /// What the node makes: its outputs as indices of those of the body, without the condition.
    pub(super) made: Vec<usize>,
    /// Inputs of the body: the number of the iteration, the condition, the carried values, the values around it.
    pub(super) body: InferenceModel,
    /// Which carried values no iteration changes.
    pub(super) constant: Vec<bool>,
    /// Names and operators of all nodes in the body, for reports.
    pub(super) nodes: Vec<(String, String)>,
    /// Whether the body hands its condition on, or makes one that is true.
    endless: bool,
    /// Whether the number of the iteration and the condition are lists of one element in the body.
    listed: [bool; 2],
    /// What the file says of each list of values that the loop collects.
    declared: Vec<InferenceFact>,
    /// Number of nodes in the body; more than an unrolled loop may have if it has operators of [`COUNTING`].
    size: usize,
}

/// What is known of a loop before it runs.
#[derive(Debug)]
pub(super) struct Known {
    /// The final carried values, then the collected ones.
    pub(super) outputs: Vec<InferenceFact>,
    /// The number of iterations, if the loop can be unrolled.
    pub(super) iterations: Option<usize>,
}

/// What is known of trip count and condition before a loop runs.
struct Start {
    /// The trip count, if there is one and it is known.
    most: Option<u64>,
    /// Whether there is a trip count that is not known.
    counts: bool,
    condition: Option<bool>,
}

impl Spec {
    /// Parses a node; also gives the names of the values around it that its body reads.
    ///
    /// # Errors
    /// For a node without body, one whose body has other inputs and outputs than the node, and one that never ends.
    pub(super) fn parse(ctx: &ParsingContext, node: &NodeProto) -> TractResult<(Self, Vec<String>)> {
        let graph = inner::of(node, "body")?;
        let given = |slot: usize| node.input.get(slot).is_some_and(|name| !name.is_empty());
        let (counted, conditional, carried) = (given(0), given(1), node.input.len().saturating_sub(2));
        let name = called(node);
        if !counted && !conditional {
            bail!("{name}: it has neither trip count nor condition, so it never ends: give one of them");
        }
        if let Some(slot) = (2..node.input.len()).find(|slot| !given(*slot)) {
            bail!("{name}: input {slot} is left out: give the initial value of what is carried");
        }
        if graph.input.len() != carried + 2 || graph.output.len() <= carried {
            bail!(
                "{name}: its body has {} inputs and {} outputs where {carried} carried values ask for {} inputs and at least \
                 {} outputs: make them agree",
                graph.input.len(),
                graph.output.len(),
                carried + 2,
                carried + 1
            );
        }
        if node.output.len() >= graph.output.len() {
            bail!(
                "{name}: it has {} outputs where its body makes {}: make them agree",
                node.output.len(),
                graph.output.len() - 1
            );
        }
        if depth(graph) >= MOST_DEPTH {
            bail!("{name}: more than {MOST_DEPTH} loops are within one another: export the model with fewer");
        }
        let (body, read) = inner::parse(ctx, node, graph)?;
        if body.inputs.len() != carried + 2 + read.len() {
            bail!("{name}: an input of its body has a default value: remove it");
        }
        let through = |at: usize| source(&body, body.outputs[at]) == body.inputs[at + 1];
        let listed = |at: usize| body.input_fact(at).map(|fact| fact.shape.rank().concretize() == Some(1));
        let mut nodes = Vec::new();
        names(graph, &mut nodes);
        let declared = graph.output[1 + carried..].iter().map(|output| {
            let of = output.r#type.as_ref().and_then(|of| of.value.as_ref());
            let of = of.map(|type_proto::Value::TensorType(of)| translate_inference_fact(ctx, of, false));
            of.and_then(Result::ok).unwrap_or_default()
        });
        let spec = Self {
            made: (0..node.output.len()).filter(|at| !node.output[*at].is_empty()).collect(),
            constant: (0..carried).map(|at| through(at + 1)).collect(),
            endless: through(0) || always(&body),
            listed: [listed(0)?, listed(1)?],
            declared: declared.collect(),
            size: if counting(graph) { usize::MAX } else { size(graph) },
            node: name,
            counted,
            conditional,
            carried,
            nodes,
            body,
        };
        Ok((spec.plain()?, read))
    }

    /// Forgets what the file says of the values in the body: shapes may change from one iteration to the next.
    fn plain(mut self) -> TractResult<Self> {
        for outlet in self.body.inputs.clone().into_iter().chain(self.body.outputs.clone()) {
            self.body.set_outlet_fact(outlet, InferenceFact::default())?;
        }
        Ok(self)
    }

    /// The index of the first carried value among the inputs of the node.
    pub(super) fn first(&self) -> usize {
        usize::from(self.counted) + usize::from(self.conditional)
    }

    /// The number of collected values.
    pub(super) fn collected(&self) -> usize {
        self.body.outputs.len() - 1 - self.carried
    }

    /// The number of an iteration, as the body has it.
    pub(super) fn number(&self, iteration: i64) -> Tensor {
        if self.listed[0] { tensor1(&[iteration]) } else { tensor0(iteration) }
    }

    /// A condition that is true, as the body has it.
    pub(super) fn truth(&self) -> Tensor {
        if self.listed[1] { tensor1(&[true]) } else { tensor0(true) }
    }

    /// The most iterations by the trip count; `None` if there is none.
    ///
    /// # Errors
    /// For a trip count that is no single number.
    pub(super) fn most(&self, count: &Tensor) -> TractResult<u64> {
        let count = count.cast_to::<i64>()?;
        let view = count.try_as_plain_ram()?;
        match view.as_slice::<i64>()? {
            [one] => Ok(u64::try_from(*one).unwrap_or(0)),
            many => bail!("{}: its trip count has {} elements: give one", self.node, many.len()),
        }
    }

    /// The value of a condition.
    ///
    /// # Errors
    /// For a condition that is no single value.
    pub(super) fn holds(&self, condition: &Tensor) -> TractResult<bool> {
        let condition = condition.cast_to::<bool>()?;
        let view = condition.try_as_plain_ram()?;
        match view.as_slice::<bool>()? {
            [one] => Ok(*one),
            many => bail!("{}: its condition has {} elements: give one", self.node, many.len()),
        }
    }

    /// Whether the loop goes on after iteration `done` of at most `most`, by the condition that its body made.
    ///
    /// # Errors
    /// For a condition that ends a loop which has none itself: the standard ignores it there, engines do not.
    pub(super) fn goes_on(&self, condition: bool, done: u64, most: Option<u64>) -> TractResult<bool> {
        let more = most.is_none_or(|most| done < most);
        if more && !condition && !self.conditional {
            bail!(
                "{}: its body ends it after {done} iterations, but it has no condition, and engines disagree on whether that \
                 counts: give it the condition true",
                self.node
            );
        }
        Ok(more && condition)
    }

    /// What is known of the outputs, from what is known of the inputs.
    ///
    /// # Errors
    /// For a body that does not fit the values, or that changes the type of one.
    pub(super) fn know(&self, inputs: &[InferenceFact]) -> TractResult<Known> {
        match self.unrolled(inputs)? {
            Some(known) => Ok(known),
            None => Ok(Known { outputs: self.after_any(inputs)?, iterations: None }),
        }
    }

    /// What is known of trip count and condition.
    fn start(&self, inputs: &[InferenceFact]) -> TractResult<Start> {
        let value = |at: usize| inputs[at].value.concretize();
        let most = if self.counted { value(0).map(|count| self.most(&count)).transpose()? } else { None };
        let condition = if self.conditional {
            let condition = value(usize::from(self.counted));
            condition.map(|condition| self.holds(&condition)).transpose()?
        } else {
            Some(true)
        };
        Ok(Start { most, counts: self.counted && most.is_none(), condition })
    }

    /// What is known if the number of iterations is, and small.
    fn unrolled(&self, inputs: &[InferenceFact]) -> TractResult<Option<Known>> {
        let Start { most, counts: false, condition: Some(condition) } = self.start(inputs)? else {
            return Ok(None);
        };
        // Spares the iterations of a loop that is known to be too long.
        if self.endless && condition && most.is_some_and(|most| most > MOST_UNROLLED as u64) {
            return Ok(None);
        }
        let mut values = inputs[self.first()..].to_vec();
        let mut collected: Vec<InferenceFact> = vec![InferenceFact::default(); self.collected()];
        if self.endless && condition && most.is_none() {
            bail!(
                "{}: its condition is always true, and it has no trip count, so it never ends: give it one",
                self.node
            );
        }
        let (mut done, mut on) = (0, condition && most != Some(0));
        while on {
            if done == MOST_UNROLLED || (done + 1).saturating_mul(self.size) > MOST_NODES {
                return Ok(None);
            }
            let number = InferenceFact::from(self.number(i64::try_from(done)?));
            let outputs = self.iteration(number, InferenceFact::from(self.truth()), &values)?;
            done += 1;
            let Some(next) = outputs[0].value.concretize() else { return Ok(None) };
            on = self.goes_on(self.holds(&next)?, done as u64, most)?;
            for (value, next) in values.iter_mut().zip(&outputs[1..=self.carried]) {
                *value = next.clone();
            }
            for (all, one) in collected.iter_mut().zip(&outputs[1 + self.carried..]) {
                all.datum_type.unify_with(&one.datum_type)?;
                all.shape.unify_with(&one.shape).map_err(|_| {
                    let shapes = format!("{:?} after {:?}", one.shape, all.shape);
                    self.collects(&shapes)
                })?;
            }
        }
        values.truncate(self.carried);
        let collected = if done == 0 { self.nothing(inputs) } else { collected };
        let collected = collected.into_iter().map(|one| listed(one, GenericFactoid::Only(done.to_dim())));
        Ok(Some(Known { outputs: values.into_iter().chain(collected).collect(), iterations: Some(done) }))
    }

    /// The error for collected values whose shapes differ.
    pub(super) fn collects(&self, shapes: &str) -> tract_onnx::prelude::TractError {
        tract_onnx::prelude::TractError::msg(format!(
            "{}: it collects arrays of different shapes, {shapes}: make them agree",
            self.node
        ))
    }

    /// What one iteration makes of what is known of its inputs: the condition, the carried values, the collected ones.
    fn iteration(
        &self,
        number: InferenceFact,
        condition: InferenceFact,
        values: &[InferenceFact],
    ) -> TractResult<Vec<InferenceFact>> {
        let mut body = self.body.clone();
        for (at, fact) in [number, condition].into_iter().chain(values.iter().cloned()).enumerate() {
            body.set_input_fact(at, fact)?;
        }
        body.analyse(false).map_err(|error| error.context(self.node.clone()))?;
        let mut outputs: Vec<InferenceFact> = body
            .outputs
            .iter()
            .map(|outlet| body.outlet_fact(*outlet).map(plain))
            .collect::<TractResult<_>>()?;
        let inputs = body.inputs.iter().map(|outlet| body.outlet_fact(*outlet).cloned());
        let inputs: Vec<InferenceFact> = inputs.collect::<TractResult<_>>()?;
        let is_known = |fact: &InferenceFact| !fact.shape.is_open() && fact.datum_type.is_concrete();
        if inputs.iter().all(is_known)
            && !outputs.iter().all(is_known)
            && let Ok(found) = translated(self.body.clone(), &self.node, &inputs)
        {
            outputs = found;
        }
        for (at, (before, after)) in values.iter().zip(&outputs[1..=self.carried]).enumerate() {
            if let (Some(before), Some(after)) =
                (before.datum_type.concretize(), after.datum_type.concretize())
                && before != after
            {
                bail!(
                    "{}: carried value {at} is {before:?} before an iteration and {after:?} after it: make them agree",
                    self.node
                );
            }
        }
        Ok(outputs)
    }

    /// What is known after a number of iterations that is not known, or too large to unroll.
    fn after_any(&self, inputs: &[InferenceFact]) -> TractResult<Vec<InferenceFact>> {
        let Start { most, counts, condition } = self.start(inputs)?;
        let initial = &inputs[self.first()..];
        let mut values = initial.to_vec();
        for (value, _) in values.iter_mut().zip(&self.constant).filter(|(_, constant)| !**constant) {
            value.value = GenericFactoid::Any;
        }
        // Each round that is not the last knows less of a shape.
        let outputs = loop {
            let number = InferenceFact::from(self.number(0)).without_value();
            let condition = InferenceFact::from(self.truth()).without_value();
            let outputs = self.iteration(number, condition, &values)?;
            let mut next = values.clone();
            let changing = next.iter_mut().zip(&outputs[1..=self.carried]).zip(&self.constant);
            for ((value, after), _) in changing.filter(|(_, constant)| !**constant) {
                *value = either(value, after);
            }
            if next == values {
                break outputs;
            }
            values = next;
        };
        // Without an iteration, the carried values are the initial ones.
        let runs = condition == Some(true) && !counts && most != Some(0);
        let carried = (0..self.carried).map(|at| match self.constant[at] {
            true => initial[at].clone(),
            false if runs => outputs[1 + at].clone().without_value(),
            false => values[at].clone(),
        });
        let count = match most {
            Some(most) if self.endless && condition == Some(true) => usize::try_from(most).ok(),
            _ => None,
        };
        let count = count.map_or(GenericFactoid::Any, |count| GenericFactoid::Only(count.to_dim()));
        let collected = outputs[1 + self.carried..].iter();
        // Arrays of no iteration have the shape that the file says, if it does.
        let collected = collected.map(|one| listed(one.clone().without_value(), count.clone()));
        Ok(carried.chain(collected).collect())
    }

    /// What is known of the values that a loop without an iteration would have collected.
    fn nothing(&self, inputs: &[InferenceFact]) -> Vec<InferenceFact> {
        let number = InferenceFact::from(self.number(0));
        let values = &inputs[self.first()..];
        let outputs = self.iteration(number, InferenceFact::from(self.truth()), values);
        let mut facts = self.declared.clone();
        for (fact, found) in facts.iter_mut().zip(outputs.iter().flat_map(|all| &all[1 + self.carried..])) {
            if found.datum_type.is_concrete() {
                fact.datum_type = found.datum_type;
            }
            if found.shape.rank().is_concrete() {
                fact.shape = found.shape.clone();
            }
        }
        facts
    }
}

/// Where a value comes from that nodes only hand on.
fn source(body: &InferenceModel, mut outlet: OutletId) -> OutletId {
    while body.node(outlet.node).op.name() == "Identity" {
        outlet = body.node(outlet.node).inputs[0];
    }
    outlet
}

/// Whether the condition that a body makes is always true.
fn always(body: &InferenceModel) -> bool {
    use tract_onnx::tract_core::ops::konst::Const;
    let maker = body.node(source(body, body.outputs[0]).node);
    let value = maker.op_as::<Const>().map(|constant| constant.val().cast_to_scalar::<bool>());
    matches!(value, Some(Ok(true)))
}

/// The graphs inside a node.
fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// How many loops are within one another in a graph.
fn depth(graph: &GraphProto) -> usize {
    let of =
        |node: &NodeProto| usize::from(node.op_type == NAME) + graphs(node).map(depth).max().unwrap_or(0);
    graph.node.iter().map(of).max().unwrap_or(0)
}

/// The most nodes that a graph can become.
fn size(graph: &GraphProto) -> usize {
    let of = |node: &NodeProto| {
        let inner = graphs(node).map(size).fold(0, usize::saturating_add);
        let unrolled = inner.saturating_mul(MOST_UNROLLED).min(MOST_NODES);
        1 + if node.op_type == NAME { unrolled.max(inner) } else { inner }
    };
    graph.node.iter().map(of).fold(0, usize::saturating_add)
}

/// Whether a graph has operators of [`COUNTING`].
fn counting(graph: &GraphProto) -> bool {
    let of = |node: &NodeProto| COUNTING.contains(&&*node.op_type) || graphs(node).any(counting);
    graph.node.iter().any(of)
}

/// Names and operators of all nodes in a graph.
fn names(graph: &GraphProto, all: &mut Vec<(String, String)>) {
    for node in &graph.node {
        if let Some(name) = super::check::name_of(node) {
            all.push((name.clone(), node.op_type.clone()));
        }
        graphs(node).for_each(|inner| names(inner, all));
    }
}
