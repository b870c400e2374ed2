//! The paths of the status page.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::page::{INDEX, MAPS_SCRIPT, SCRIPT, STYLE};

/// The page uses its own files and the API, and nobody else's; no other site shows it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The paths of the page.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |kind: &'static str, text: &'static str| get(move || async move { of(kind, text) });
    Router::new()
        .route("/", file("text/html; charset=utf-8", INDEX))
        .route("/status.css", file("text/css; charset=utf-8", STYLE))
        .route("/maps.js", file("text/javascript; charset=utf-8", MAPS_SCRIPT))
        .route("/status.js", file("text/javascript; charset=utf-8", SCRIPT))
}

fn of(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Another version of the daemon brings another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), text).into_response()
}
