//! What must hold of any bytes that arrive: shared by the corpus test and the fuzzer.

use fcdcc::cluster::wire::{Answer, Call, Request, pack, unpack};

/// Panics where it does not hold.
pub(crate) fn check(data: &[u8]) {
    if let Ok(call) = unpack::<Call>(data) {
        assert_eq!(unpack::<Call>(&pack(&call)).as_ref(), Ok(&call));
        if let Request::Install { spec, .. } = &call.request
            && let Ok(shape) = spec.subtask()
        {
            // What is accepted can be multiplied and added.
            let elems = [shape.upload_elems(), shape.filter_elems(), shape.download_elems()];
            let bytes = elems.iter().map(|elems| elems * spec.dtype.size_bytes()).sum::<usize>();
            assert!(bytes > 0);
        }
    }
    if let Ok(answer) = unpack::<Answer>(data) {
        assert_eq!(unpack::<Answer>(&pack(&answer)).as_ref(), Ok(&answer));
        if let Answer::Info(info) = &answer {
            // Either way it returns.
            let _ = info.check();
        }
    }
}
