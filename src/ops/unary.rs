//! Functions of single elements: sigmoid, hyperbolic tangent, exponential and error function.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::share::{Vectorized, share, vectorized};
use crate::array::Element;

/// A function of one element, exact to a few units in the last place over its whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// (exp(2x) - 1) / (exp(2x) + 1)
    Tanh,
    /// exp(x)
    Exp,
    /// 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x
    Erf,
}

impl Unary {
    /// Work for an element, in copies of one.
    fn cost(self) -> usize {
        match self {
            Self::Sigmoid | Self::Tanh | Self::Exp => 4,
            Self::Erf => 64,
        }
    }

    /// Writes the function of every element of `data` to `output`, of the same length.
    pub fn run<T: Element>(self, data: &[T], output: &mut [T]) {
        assert_eq!(data.len(), output.len(), "data and output of a function differ in length");
        share(output, 1, self.cost(), |first, to| {
            vectorized(Each { function: self, from: &data[first..first + to.len()], to });
        });
    }
}

struct Each<'a, T> {
    function: Unary,
    from: &'a [T],
    to: &'a mut [T],
}

impl<T: Element> Each<'_, T> {
    #[inline(always)]
    fn each(self, f: impl Fn(T) -> T) {
        for (y, x) in self.to.iter_mut().zip(self.from) {
            *y = f(*x);
        }
    }
}

impl<T: Element> Vectorized for Each<'_, T> {
    #[inline(always)]
    fn run(self) {
        let (zero, one, two) = (T::default(), T::ONE, T::ONE + T::ONE);
        match self.function {
            Unary::Sigmoid => self.each(|x| {
                // Of the smaller side, so that no digit is lost in a sum with 1.
                let small = (zero - x.abs()).exp();
                let over = one / (one + small);
                if x < zero { small * over } else { over }
            }),
            Unary::Tanh => self.each(|x| {
                let size = x.abs();
                let limit = T::from_f64(22.0);
                let size = if size > limit { limit } else { size };
                let more = (size + size).exp_m1();
                let y = more / (more + two);
                if x < zero { zero - y } else { y }
            }),
            Unary::Exp => self.each(T::exp),
            Unary::Erf => self.each(T::erf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Unary; 4] = [Unary::Sigmoid, Unary::Tanh, Unary::Exp, Unary::Erf];

    fn by_definition(function: Unary, x: f64) -> f64 {
        match function {
            Unary::Sigmoid if x < 0.0 => x.exp() / (1.0 + x.exp()),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Tanh => x.tanh(),
            Unary::Exp => x.exp(),
            Unary::Erf => libm::erf(x),
        }
    }

    /// From -100 to 100, and near zero; longer than a piece for one thread.
    fn data() -> Vec<f64> {
        let wide = (0..40_001).map(|i| f64::from(i) / 200.0 - 100.0);
        let near = (0..200).flat_map(|i| [1.0, -1.0].map(|sign| sign * 0.9_f64.powi(i)));
        wide.chain(near).collect()
    }

    #[test]
    fn every_element_is_exact_relative_to_its_size() {
        for function in ALL {
            let wide = data();
            let single: Vec<f32> = wide.iter().map(|x| f32::from_f64(*x)).collect();
            let mut of_f64 = vec![f64::NAN; wide.len()];
            function.run(&wide, &mut of_f64);
            let mut of_f32 = vec![f32::NAN; wide.len()];
            function.run(&single, &mut of_f32);
            for ((x, single), (double, got)) in wide.iter().zip(&single).zip(of_f64.iter().zip(&of_f32)) {
                let want = by_definition(function, *x);
                assert!(
                    (double - want).abs() <= 8.0 * f64::EPSILON * want.abs(),
                    "{function:?} of {x}: {double}"
                );
                let want = by_definition(function, f64::from(*single));
                let error = (f64::from(*got) - want).abs();
                // Denormal results have fewer digits.
                let least = f64::from(f32::from_bits(1));
                let within = error <= 6.0 * f64::from(f32::EPSILON) * want.abs() + least;
                assert!(
                    within || want > f64::from(f32::MAX),
                    "{function:?} of {single}: {got} instead of {want}"
                );
            }
        }
    }

    #[test]
    fn ends_of_the_range_and_nan() {
        let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0];
        for (function, first) in
            ALL.into_iter().zip([[1.0, 0.0], [1.0, -1.0], [f32::INFINITY, 0.0], [1.0, -1.0]])
        {
            let mut y = [7.0; 5];
            function.run(&x, &mut y);
            assert_eq!(y[..2], first, "{function:?}");
            assert!(y[2].is_nan(), "{function:?}");
            let at_zero = f32::from_f64(by_definition(function, 0.0));
            assert_eq!(y[3..], [at_zero, at_zero], "{function:?}");
        }
    }
}
