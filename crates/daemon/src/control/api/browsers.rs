//! The status page over TCP, for browsers, and the same numbers for Prometheus. Nothing can be
//! changed there.
//!
//! An address that other machines reach needs a token. On a loopback address none is needed, and
//! the header Host has to be an address or `localhost`: a site whose name leads to this machine
//! can't have a browser read the page for it.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, HeaderValue, WWW_AUTHENTICATE};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use subtle::ConstantTimeEq;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fleet::Fleet;
use super::page;
use super::phase::Phase;
use super::routes::look_only;
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::page::StatusPageOptions;

/// Connections that there may be; one more ends the oldest.
const CONNECTIONS_MAX: usize = 32;
/// Time for the head of a request, from the end of the one before.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// After a failed accept: time until the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The shortest token, in bytes.
const TOKEN_BYTES_MIN: usize = 16;

/// A socket for readers of the status page.
#[derive(Debug)]
pub struct StatusPage {
    listener: TcpListener,
    token: Option<String>,
}

impl StatusPage {
    /// Listens, if an address is given.
    pub fn bind(options: &StatusPageOptions) -> Result<Option<StatusPage>, Failure> {
        let Some(address) = options.address else {
            return match &options.token {
                None => Ok(None),
                Some(_) => Err(Failure::usage("--status-token", "there is no status page")
                    .expected("--status-page ADDRESS:PORT with it")),
            };
        };
        let token = options.token.as_deref().map(read_token).transpose()?;
        if token.is_none() && !address.ip().is_loopback() {
            return Err(Failure::usage(
                format_args!("--status-page {address}"),
                "everybody who reaches this address could read it",
            )
            .expected(
                "an address of this machine alone, such as 127.0.0.1:9180, or --status-token FILE",
            )
            .advice("make a token with: (umask 077; openssl rand -hex 16 > FILE)"));
        }
        let failed = |error: std::io::Error| {
            Failure::could_not_run(
                Path::new(&format!("--status-page {address}")),
                format_args!("can't listen there: {error}"),
            )
            .advice("choose another port, or stop what uses this one (`ss -ltnp` names it)")
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Some(StatusPage { listener, token }))
    }

    /// The address of the page, for a browser.
    pub fn url(&self) -> String {
        let address = self.listener.local_addr();
        address.map(|address| format!("http://{address}/")).unwrap_or_default()
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::could_not_run(path, format_args!("can't read the token: {error}"))
    })?;
    let token = text.trim();
    if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::refused(path, "this is no token that protects the status page")
            .found(format_args!("{} bytes", token.len()))
            .expected(format_args!(
                "one line of at least {TOKEN_BYTES_MIN} letters, digits and signs"
            ))
            .advice("make one with: (umask 077; openssl rand -hex 16 > FILE)"));
    }
    Ok(token.to_owned())
}

/// Serves until the phase is that of the end.
pub(super) async fn serve(page: StatusPage, fleet: Fleet, mut phase: watch::Receiver<Phase>) {
    let listener = match tokio::net::TcpListener::from_std(page.listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the status page can't be served: {error}"),
    };
    let token = page.token.map(Arc::from);
    let router = look_only(fleet).layer(from_fn_with_state(token, admit)).merge(page::routes());
    let mut tasks = JoinSet::new();
    let mut order = std::collections::VecDeque::new();
    let ending = async move {
        // Without a sender it is the end as well.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ending(_))).await.is_ok();
    };
    let mut ending = std::pin::pin!(ending);
    loop {
        tokio::select! {
            () = ending.as_mut() => return,
            _ = tasks.join_next(), if !tasks.is_empty() => {
                order.retain(|task: &tokio::task::AbortHandle| !task.is_finished());
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    while order.len() >= CONNECTIONS_MAX {
                        let oldest = order.pop_front().expect("it is not empty");
                        oldest.abort();
                    }
                    order.push_back(tasks.spawn(one(stream, router.clone())));
                }
                Err(error) => {
                    tracing::debug!(%error, "can't accept readers of the status page for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn one(stream: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!(%error, "a reader of the status page ended");
    }
}

/// Lets requests pass that know the token, or that a browser makes for this machine alone.
async fn admit(State(token): State<Option<Arc<str>>>, request: Request, next: Next) -> Response {
    let admitted = match &token {
        Some(token) => knows(request.headers(), token),
        None => names_an_address(request.headers()),
    };
    if admitted {
        return next.run(request).await;
    }
    match token {
        Some(_) => {
            let refusal = Refusal::new(Kind::Unauthorized, "the token is missing or wrong")
                .expected(
                    "the header `Authorization: Bearer TOKEN`; in a browser http://…/#token=TOKEN",
                );
            let mut response = refusal.into_response();
            let challenge = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            response
        }
        None => Refusal::new(Kind::Forbidden, "the header Host names another site")
            .expected("the address of this machine, or localhost")
            .into_response(),
    }
}

fn knows(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    given.ct_eq(token.as_bytes()).into()
}

fn names_an_address(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return true };
    host.parse::<SocketAddr>().is_ok()
        || host.parse::<IpAddr>().is_ok()
        || host.rsplit_once(':').map_or(host, |(name, _)| name) == "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: axum::http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a header"))])
    }

    #[test]
    fn only_the_whole_token_is_known() {
        let token = "0123456789abcdef";
        assert!(knows(&headers(AUTHORIZATION, "Bearer 0123456789abcdef"), token));
        for wrong in ["Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", "", token] {
            assert!(!knows(&headers(AUTHORIZATION, wrong), token), "{wrong}");
        }
        assert!(!knows(&HeaderMap::new(), token));
    }

    #[test]
    fn names_of_other_sites_are_refused() {
        for own in ["127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "localhost:9180", "localhost"] {
            assert!(names_an_address(&headers(HOST, own)), "{own}");
        }
        for other in ["rebound.example:9180", "localhost.example", ""] {
            assert!(!names_an_address(&headers(HOST, other)), "{other}");
        }
    }
}
