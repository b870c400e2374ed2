//! Bodies: those of requests, with limits on time and size, and those of responses.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::control::refusal::{ErrorBody, Kind, Refusal};
use crate::served::maps::{CELLS, CELLS_MAX};

/// The longest body of a request.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;
/// The longest body that is read to its end before it is refused: most clients send all of it
/// before they look at the response.
const READ_BYTES_MAX: usize = 1 << 20;
/// Time for the body of a request.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// The body of a request, which is whole: a JSON object.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Json<T>, Refusal> {
        parse(&read(request.into_body()).await?).map(Json)
    }
}

/// The options of a request, which is whole: a JSON object, or nothing at all.
pub(super) struct Options<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Options<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Options<T>, Refusal> {
        let bytes = read(request.into_body()).await?;
        let text = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes.as_slice() };
        parse(text).map(Options)
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Refusal> {
    if !text.trim_ascii().is_empty() && !text.trim_ascii().starts_with(b"{") {
        // serde would take a list for an object whose fields have defaults.
        return Err(no_object(text));
    }
    serde_json::from_slice(text).map_err(|error| unreadable(&error))
}

/// The request with its whole body in memory.
pub(super) async fn whole(request: Request) -> Result<Request, Refusal> {
    let (parts, body) = request.into_parts();
    Ok(Request::from_parts(parts, read(body).await?.into()))
}

async fn read(body: Body) -> Result<Vec<u8>, Refusal> {
    let too_large = |found: &dyn std::fmt::Display| {
        Refusal::new(Kind::TooLarge, "the body of the request is too large")
            .found(found)
            .expected(format_args!("at most {BODY_BYTES_MAX} bytes"))
    };
    if body.size_hint().lower() > READ_BYTES_MAX as u64 {
        return Err(too_large(&format_args!("{} bytes", body.size_hint().lower())));
    }
    let whole = axum::body::to_bytes(body, READ_BYTES_MAX);
    let bytes = match tokio::time::timeout(BODY_PATIENCE, whole).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if std::error::Error::source(&error).is_some_and(is_limit) => {
            return Err(too_large(&format_args!("more than {READ_BYTES_MAX} bytes")));
        }
        Ok(Err(error)) => {
            let why = format_args!("the body of the request can't be read: {error}");
            return Err(Refusal::new(Kind::Malformed, why));
        }
        Err(_) => {
            return Err(Refusal::new(
                Kind::Late,
                "the body of the request did not come whole in time",
            )
            .expected(format_args!("within {} s", BODY_PATIENCE.as_secs())));
        }
    };
    if bytes.len() > BODY_BYTES_MAX {
        return Err(too_large(&format_args!("{} bytes", bytes.len())));
    }
    Ok(bytes.into())
}

fn is_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    error.to_string().contains("length limit")
}

fn no_object(text: &[u8]) -> Refusal {
    match serde_json::from_slice::<serde::de::IgnoredAny>(text) {
        Err(error) => unreadable(&error),
        Ok(_) => Refusal::new(Kind::Unfit, "the body of the request is no JSON object")
            .expected("an object, as in {\"wait\":true}"),
    }
}

fn unreadable(error: &serde_json::Error) -> Refusal {
    let place = format!("line {}, column {}", error.line(), error.column());
    let text = error.to_string();
    let end = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&end).unwrap_or(&text);
    match error.classify() {
        Category::Data => {
            Refusal::new(Kind::Unfit, format_args!("the body of the request: {text}, {place}"))
        }
        _ => Refusal::new(
            Kind::Malformed,
            format_args!("the body of the request is not JSON: {text}, {place}"),
        )
        .expected("a JSON object"),
    }
}

/// The part of the path that is a name.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, Refusal> {
        let Path(name) = path(parts, state).await?;
        Ok(Name(name))
    }
}

/// The parts of the path that are names: of a volume or set, and of an attribute.
pub(super) struct Names(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Names, Refusal> {
        let Path((owner, name)) = path(parts, state).await?;
        Ok(Names(owner, name))
    }
}

async fn path<S: Send + Sync, T: DeserializeOwned + Send>(
    parts: &mut Parts,
    state: &S,
) -> Result<Path<T>, Refusal> {
    Path::from_request_parts(parts, state).await.map_err(|error| {
        Refusal::new(Kind::Malformed, format_args!("the path can't be read: {error}"))
            .found(parts.uri.path())
    })
}

/// The number of cells of a map, behind the path: `?cells=N`.
pub(super) struct Cells(pub(super) u32);

impl<S: Send + Sync> FromRequestParts<S> for Cells {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Cells, Refusal> {
        let Some(query) = parts.uri.query() else { return Ok(Cells(CELLS)) };
        let cells = query.strip_prefix("cells=").and_then(|number| number.parse().ok());
        cells.filter(|cells| (1..=CELLS_MAX).contains(cells)).map(Cells).ok_or_else(|| {
            Refusal::new(Kind::Malformed, "the parameter behind the path can't be read")
                .found(format_args!("?{query}"))
                .expected(format_args!("?cells=N, N from 1 to {CELLS_MAX}"))
        })
    }
}

/// Returns true if the path takes a number of cells.
pub(super) fn takes_cells(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(parts.as_slice(), ["", "v1", "volumes", _, "map"] | ["", "v1", "sets", _, "buckets"])
}

/// A response with a JSON body.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut text =
        serde_json::to_string(value).expect("plain data without non-string keys always serializes");
    text.push('\n');
    with_text(status, "application/json", text)
}

/// A response with a body of that type.
pub(super) fn with_text(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    (status, headers, text).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status());
        json(status.expect("kinds have codes of HTTP"), &ErrorBody { error: self })
    }
}
