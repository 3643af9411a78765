//! Properties of the decoder for any received bytes; shared by the corpus test and the fuzzer.

use fcdcc::cluster::wire::{Answer, Call, Hello, Request, check_signature, pack, unpack};
use fcdcc::worker::PartArray;

/// Panics if a property is violated.
pub(crate) fn check(data: &[u8]) {
    if let Ok(call) = unpack::<Call>(data) {
        assert_eq!(unpack::<Call>(&pack(&call)).as_ref(), Ok(&call));
        if let Request::Install { spec, .. } = &call.request
            && let Ok(shape) = spec.subtask()
        {
            // Accepted sizes can be multiplied and added without overflow.
            let elems = [shape.upload_elems(), shape.filter_elems(), shape.download_elems()];
            let bytes = elems.iter().map(|elems| elems * spec.dtype.size_bytes()).sum::<usize>();
            assert!(bytes > 0);
        }
    }
    if let Ok(hello) = unpack::<Hello>(data) {
        assert_eq!(unpack::<Hello>(&pack(&hello)).as_ref(), Ok(&hello));
    }
    if let Ok(answer) = unpack::<Answer>(data) {
        assert_eq!(unpack::<Answer>(&pack(&answer)).as_ref(), Ok(&answer));
        if let Answer::PartInstalled { signature } = &answer
            && check_signature(signature).is_ok()
        {
            let arrays = signature.inputs.iter().chain(&signature.outputs);
            assert!(arrays.filter_map(PartArray::size_bytes).sum::<usize>() > 0);
        }
        if let Answer::Info(info) = &answer {
            // The check must return, with either result.
            let _ = info.check();
        }
    }
}
