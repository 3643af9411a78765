//! Generic functions that are compiled once, in this crate.
//!
//! Relevant if you want to make a generic function public. A crate that calls one compiles it again for each element type
//! that it names, with everything beneath. [`once`] puts a function that is not generic in between.

use std::any::Any;

/// `value` under another name of its type.
///
/// # Panics
/// When `B` is another type than `A`.
pub(crate) fn same<A: 'static, B: 'static>(value: A) -> B {
    let mut value = Some(value);
    let value = (&mut value as &mut dyn Any).downcast_mut::<Option<B>>().and_then(Option::take);
    value.expect("both names are of one type")
}

/// As [`same`], of a reference.
pub(crate) fn same_ref<A: 'static, B: 'static>(value: &A) -> &B {
    (value as &dyn Any).downcast_ref().expect("both names are of one type")
}

/// As [`same`], of a mutable reference.
pub(crate) fn same_mut<A: 'static, B: 'static>(value: &mut A) -> &mut B {
    (value as &mut dyn Any).downcast_mut().expect("both names are of one type")
}

/// `once!(T as E; fn(x: &[E] = cast_slice(x)) -> Vec<E> { ... }, same)` computes the body for the element type T of the
/// caller, which the body calls E. For each parameter of the body there is an expression in the types of the caller; the
/// function behind the body brings the result back to them.
macro_rules! once {
    ($t:ty as $e:ident; fn($($name:ident: $of:ty = $value:expr),* $(,)?) -> $result:ty $body:block, $back:expr) => {
        match <$t as $crate::array::Element>::DTYPE {
            $crate::array::DType::F32 => {
                type $e = f32;
                #[inline(never)]
                #[allow(clippy::too_many_arguments, reason = "it has the arguments of the caller")]
                fn compiled($($name: $of),*) -> $result $body
                $back(compiled($($value),*))
            }
            $crate::array::DType::F64 => {
                type $e = f64;
                #[inline(never)]
                #[allow(clippy::too_many_arguments, reason = "it has the arguments of the caller")]
                fn compiled($($name: $of),*) -> $result $body
                $back(compiled($($value),*))
            }
        }
    };
}
pub(crate) use once;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Element;

    fn name<T: Element>(values: &[T]) -> (String, Vec<T>) {
        once!(T as E; fn(values: &[E] = bytemuck::cast_slice(values)) -> (String, Vec<E>) {
            (std::any::type_name::<E>().to_owned(), values.to_vec())
        }, same)
    }

    #[test]
    fn a_body_is_run_in_the_type_of_its_caller() {
        assert_eq!(name(&[1.0_f32, 2.0]), ("f32".to_owned(), vec![1.0, 2.0]));
        assert_eq!(name(&[3.0_f64]), ("f64".to_owned(), vec![3.0]));
    }

    #[test]
    #[should_panic(expected = "one type")]
    fn another_type_is_no_other_name() {
        let _: Vec<f64> = same(vec![1.0_f32]);
    }
}
