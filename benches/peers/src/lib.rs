//! What both programs of this package share: engines in processes of their own, numbers, and facts about the machine.

pub mod child;
pub mod machine;
pub mod numbers;
