//! Chains of elementwise operators, applied block by block while the block is in the innermost cache.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::share::{Vectorized, share, vectorized};
use crate::array::Element;

/// Elements to which a whole chain is applied before the next ones are read.
const BLOCK: usize = 2048;

/// An operator of two arguments: the data `x` and the operand `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// x + y
    Add,
    /// x - y
    Sub,
    /// y - x
    ReverseSub,
    /// x y
    Mul,
    /// x / y
    Div,
    /// y / x
    ReverseDiv,
    /// The larger; x if one of them is NaN.
    Max,
    /// The smaller; x if one of them is NaN.
    Min,
}

/// An operator and its operand, repeated over the data: element `i` meets `values[(i / inner) % values.len()]`.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a, T> {
    /// The operator.
    pub op: BinaryOp,
    /// The values of the operand: one, one for each channel, or one for each element.
    pub values: &'a [T],
    /// The number of successive elements that share a value.
    pub inner: usize,
}

/// Applies `steps` in order to every element of `data` and writes `output`, of the same length.
pub fn chain<T: Element>(data: &[T], steps: &[Step<'_, T>], output: &mut [T]) {
    assert_eq!(data.len(), output.len(), "data and output of a chain differ in length");
    share(output, 1, 1 + steps.len(), |first, piece| {
        for (index, block) in piece.chunks_mut(BLOCK).enumerate() {
            let start = first + index * BLOCK;
            block.copy_from_slice(&data[start..start + block.len()]);
            apply(steps, start, block);
        }
    });
}

/// As [`chain`], overwriting the data.
pub fn chain_in_place<T: Element>(data: &mut [T], steps: &[Step<'_, T>]) {
    share(data, 1, 1 + steps.len(), |first, piece| {
        for (index, block) in piece.chunks_mut(BLOCK).enumerate() {
            apply(steps, first + index * BLOCK, block);
        }
    });
}

/// Applies `steps` to elements of which the first has index `start` in the whole array.
fn apply<T: Element>(steps: &[Step<'_, T>], start: usize, block: &mut [T]) {
    for step in steps {
        vectorized(OneStep { step, start, block: &mut *block });
    }
}

struct OneStep<'a, T> {
    step: &'a Step<'a, T>,
    start: usize,
    block: &'a mut [T],
}

impl<T: Element> Vectorized for OneStep<'_, T> {
    #[inline(always)]
    fn run(self) {
        match self.step.op {
            BinaryOp::Add => self.each(|x, y| x + y),
            BinaryOp::Sub => self.each(|x, y| x - y),
            BinaryOp::ReverseSub => self.each(|x, y| y - x),
            BinaryOp::Mul => self.each(|x, y| x * y),
            BinaryOp::Div => self.each(|x, y| x / y),
            BinaryOp::ReverseDiv => self.each(|x, y| y / x),
            BinaryOp::Max => self.each(|x, y| if x < y { y } else { x }),
            BinaryOp::Min => self.each(|x, y| if y < x { y } else { x }),
        }
    }
}

impl<T: Element> OneStep<'_, T> {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "it is compiled for each instruction set, which a call would lose"
    )]
    fn each(self, f: impl Fn(T, T) -> T) {
        let Step { values, inner, .. } = *self.step;
        let (mut rest, mut at) = (self.block, self.start);
        while !rest.is_empty() {
            let index = (at / inner) % values.len();
            if inner == 1 && values.len() > 1 {
                // One value for each element, up to the next repetition.
                let (now, later) = rest.split_at_mut(rest.len().min(values.len() - index));
                for (x, y) in now.iter_mut().zip(&values[index..]) {
                    *x = f(*x, *y);
                }
                at += now.len();
                rest = later;
            } else {
                let run = if values.len() == 1 { rest.len() } else { inner - at % inner };
                let (now, later) = rest.split_at_mut(rest.len().min(run));
                let y = values[index];
                for x in now.iter_mut() {
                    *x = f(*x, y);
                }
                at += now.len();
                rest = later;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_definition(op: BinaryOp, x: f64, y: f64) -> f64 {
        match op {
            BinaryOp::Add => x + y,
            BinaryOp::Sub => x - y,
            BinaryOp::ReverseSub => y - x,
            BinaryOp::Mul => x * y,
            BinaryOp::Div => x / y,
            BinaryOp::ReverseDiv => y / x,
            BinaryOp::Max => x.max(y),
            BinaryOp::Min => x.min(y),
        }
    }

    const ALL: [BinaryOp; 8] = [
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::ReverseSub,
        BinaryOp::Mul,
        BinaryOp::Div,
        BinaryOp::ReverseDiv,
        BinaryOp::Max,
        BinaryOp::Min,
    ];

    #[test]
    fn every_operator_meets_the_operand_of_its_element() {
        // Longer than a piece for one thread, and no multiple of anything.
        let (channels, plane) = (7, 5003);
        let total = 3 * channels * plane;
        let data: Vec<f64> =
            (0..total).map(|i| f64::from(u32::try_from(i % 1013).unwrap()) - 500.5).collect();
        let wide: Vec<f64> =
            (0..total).map(|i| f64::from(u32::try_from(i % 389).unwrap()) - 200.25).collect();
        for op in ALL {
            for (count, inner) in [(1, total), (channels, plane), (plane, 1), (total, 1), (1, 1)] {
                let values = &wide[..count];
                let want: Vec<f64> =
                    (0..total).map(|i| by_definition(op, data[i], values[(i / inner) % count])).collect();
                let mut got = vec![f64::NAN; total];
                let steps = [Step { op, values, inner }];
                chain(&data, &steps, &mut got);
                assert_eq!(got, want, "{op:?} with {count} values for {inner} elements each");
                let mut got = data.clone();
                chain_in_place(&mut got, &steps);
                assert_eq!(got, want, "{op:?} in place");
            }
        }
    }

    #[test]
    fn steps_are_applied_in_order_and_nan_stays() {
        let steps = [
            Step { op: BinaryOp::Mul, values: &[2.0f32], inner: 1 },
            Step { op: BinaryOp::Add, values: &[1.0, -10.0], inner: 2 },
            Step { op: BinaryOp::Max, values: &[0.0], inner: 1 },
        ];
        let mut got = [0.0f32; 5];
        chain(&[1.0, f32::NAN, 3.0, 6.0, -2.0], &steps, &mut got);
        assert!(got[1].is_nan());
        assert_eq!([got[0], got[2], got[3], got[4]], [3.0, 0.0, 2.0, 0.0]);
    }
}
