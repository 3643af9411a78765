//! The page at `/`, on which a person drops a picture and sees its classes, what each worker did, and what it cost.
//!
//! Relevant if you want to demonstrate a running server. The page is one file that loads nothing from other servers; it uses
//! the same addresses as every other client, and asks for a token where the server needs one.
//!
//! Invariant: a browser runs the script of the page and no other, loads nothing from another site, and shows the page in no
//! frame: the policy names script and style by their digests.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("page.html");

/// The policy of the page.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let mut policy = "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; \
        form-action 'none'; frame-ancestors 'none'"
        .to_owned();
    for (directive, element) in [("script-src", "script"), ("style-src", "style")] {
        let hash = STANDARD.encode(digest(&SHA256, content(PAGE, element).as_bytes()));
        // Writing to a string cannot fail.
        let _ = write!(policy, "; {directive} 'sha256-{hash}'");
    }
    policy
});

/// What is between the tags of the only `element` of a page; empty where there is none.
fn content<'a>(page: &'a str, element: &str) -> &'a str {
    let after = page.split_once(&format!("<{element}>")).map_or("", |(_, after)| after);
    after.split_once(&format!("</{element}>")).map_or("", |(content, _)| content)
}

/// The page.
pub(crate) fn response() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

/// Whether a page of another site made a browser send this request. Browsers say so; other clients do not have the headers.
pub(crate) fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return !matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(header::ORIGIN) else { return false };
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_none() || authority != text(header::HOST)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_nothing_from_elsewhere() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(content(PAGE, element).len() > 100, "{element}");
        }
        // Attributes with scripts or styles would be refused by the policy.
        for part in ["http://", "https://", " style=", " onclick=", "@import", "url(", "innerHTML"] {
            assert!(!PAGE.contains(part), "{part}");
        }
        assert_eq!(content("<p><b>x</b></p>", "b"), "x");
        assert_eq!(content("<b>x", "i"), "");
    }

    #[test]
    fn requests_of_other_sites_are_told_apart() {
        let of = |rows: &[(&'static str, &'static str)]| {
            is_foreign(
                &rows.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect(),
            )
        };
        let own = [("host", "localhost:8000"), ("origin", "http://localhost:8000")];
        let other = [("host", "localhost:8000"), ("origin", "https://example.com")];
        assert!(!of(&[]) && !of(&own) && of(&other));
        assert!(of(&[("host", "a"), ("origin", "null")]));
        for (site, foreign) in
            [("same-origin", false), ("none", false), ("same-site", true), ("cross-site", true)]
        {
            assert_eq!(of(&[own[0], own[1], ("sec-fetch-site", site)]), foreign, "{site}");
        }
    }
}
