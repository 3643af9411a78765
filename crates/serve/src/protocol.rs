//! The two protocols of a server.
//!
//! Relevant if you want to know what an address speaks.
//!
//! Invariant: an address speaks one of them, and offers no other in TLS.

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2, by prior knowledge or ALPN.
    Grpc,
}

impl Protocol {
    /// The name for ALPN.
    pub(crate) fn alpn(self) -> &'static str {
        match self {
            Self::Http => "http/1.1",
            Self::Grpc => "h2",
        }
    }
}
