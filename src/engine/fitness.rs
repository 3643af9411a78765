//! Checks a layer's code before anything is built: that it decodes at all, and that it supports the requested audit.
//!
//! Invariant: errors name the value found, the value needed, and a help.

use crate::array::Element;
use crate::coding::{AUDIT_TARGET, Code, CodeKind, ParityCheckCache, Rounding, SINGULAR};
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::{Audit, Fleet, Pool, assign};

/// Refuses a code that does not decode even from all subtasks: real polynomials of high degree. (CRME needs no check:
/// with all subtasks its roots are spread over the whole circle.)
pub(super) fn check_condition(code: &Code) -> Result<()> {
    if code.kind() == CodeKind::Crme {
        return Ok(());
    }
    let condition = code.condition(&(0..code.n()).collect::<Vec<_>>());
    if condition <= SINGULAR {
        return Ok(());
    }
    Err(Error::mismatch(
        format!("condition number of code {} from all {} subtasks", code.kind(), code.n()),
        format!("{condition:.1e}"),
        format!("at most {SINGULAR:.0e}"),
        Message::from("use fewer partitions (")
            .and(Parameter::Partitions)
            .and(", ")
            .and(Parameter::Tolerate)
            .and("), or code crme"),
    ))
}

/// Refuses [`Audit::Detect`] and [`Audit::Correct`] where the code has too few spare results for them.
pub(super) fn check_audit<T: Element>(
    code: &Code,
    audit: Audit,
    pool: &Pool,
    checkers: &ParityCheckCache,
    reduction: usize,
) -> Result<()> {
    if matches!(audit, Audit::Off | Audit::Watch) {
        return Ok(());
    }
    let wire = pool.wire().of(T::DTYPE);
    let noise = Rounding { half: pool.keeps_half(), wire, ..Rounding::plain::<T>(reduction) }.normwise(1.0);
    let spare = spare_for(audit);
    if code.tolerated() < spare {
        return Err(Error::mismatch(
            Message::from("spare results for ").and(Parameter::Audit).and(format!(" {audit}")),
            code.tolerated(),
            format!("at least {spare}"),
            Message::from(format!(
                "{} subtasks of which {} are needed leave no more: raise ",
                code.n(),
                code.recovery_threshold()
            ))
            .and(Parameter::Subtasks)
            .and(", or lower ")
            .and(Parameter::Partitions),
        ));
    }
    check_witnesses(code, audit, pool)?;
    let all: Vec<usize> = (0..code.n()).collect();
    let inputs = code.sub_results_of(&all);
    let groups: Vec<usize> = inputs.iter().map(|of| of.subtask.0).collect();
    let floor = checkers.checker(code, &inputs)?.floor(&groups, noise);
    if floor > AUDIT_TARGET {
        return Err(Error::mismatch(
            "smallest relative error that an audit of this code would find",
            format!("{floor:.1e}"),
            format!("at most {AUDIT_TARGET:.0e}"),
            "use more spare results, fewer partitions or f64",
        ));
    }
    Ok(())
}

/// Spare results that an audit needs.
fn spare_for(audit: Audit) -> usize {
    match audit {
        Audit::Off | Audit::Watch => 0,
        Audit::Detect => 1,
        Audit::Correct => 2,
    }
}

/// Refuses an audit whose copies of a part lie on one worker: that worker would make the same mistake in each.
fn check_witnesses(code: &Code, audit: Audit, pool: &Pool) -> Result<()> {
    if code.part_of(SubtaskId(0)).is_none() {
        return Ok(());
    }
    let (assignment, parts) = (assign(code.n(), &pool.seats()), code.k_a() * code.k_b());
    let workers = |part: usize| {
        let mut workers: Vec<WorkerId> = (part..code.n()).step_by(parts).map(|i| assignment[i]).collect();
        workers.sort_unstable();
        workers.dedup();
        workers.len()
    };
    let (least, wanted) = ((0..parts).map(workers).min().unwrap_or(0), 1 + spare_for(audit));
    if least < wanted {
        let help = format!("give each of the {} subtasks a worker of its own, or use code crme", code.n());
        let least_for = Message::from(format!("at least {wanted} for "));
        return Err(Error::mismatch(
            "number of workers that compute the same part",
            least,
            least_for.and(Parameter::Audit).and(format!(" {audit}")),
            help,
        ));
    }
    Ok(())
}
