//! Paths and methods of the control API. What each one takes and gives: [`super::openapi`].

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::body::{Cells, Json, Name, Names, Options, json, takes_cells, whole, with_text};
use super::fleet::Fleet;
use super::forms::{
    AddOptions, FlashOptions, ForgetOptions, MoveOptions, Nothing, OPEN_METRICS,
    RemoveFlashOptions, RemoveOptions, ReplaceOptions, ResizeCacheOptions, ResizeOptions, SetNames,
    Sets, UpgradeOptions, VolumeOfSet, Volumes, WaitOptions,
};
use super::settings::{Settings, Value};
use super::stream::Connection;
use super::{openapi, page};
use crate::backing::is_uri;
use crate::control::mailbox::{Answer, Reply};
use crate::control::process::ProcessRequest;
use crate::control::refusal::{Kind, Refusal};
use crate::control::request::ControlRequest;
use crate::served::metrics::open_metrics;

/// The router of all paths.
pub(super) fn router(fleet: Fleet) -> Router {
    let volume = "/v1/volumes/{volume}";
    let set = "/v1/sets/{set}";
    Router::new()
        .route("/v1/openapi.json", get(openapi_json))
        .route("/v1/status", get(status))
        .route("/v1/metrics", get(metrics))
        .route("/v1/devices", get(devices))
        .route("/v1/stop", post(stop))
        .route("/v1/upgrade", post(upgrade))
        .route("/v1/config/diff", get(config_diff))
        .route("/v1/config/apply", post(config_apply))
        .route("/v1/volumes", get(volumes))
        .route(volume, get(one_volume))
        .route(&format!("{volume}/attributes"), get(attributes_of_volume).patch(set_of_volume))
        .route(
            &format!("{volume}/attributes/{{attribute}}"),
            get(attribute_of_volume).put(put_of_volume),
        )
        .route(&format!("{volume}/map"), get(volume_map))
        .route(&format!("{volume}/flush"), post(flush_volume))
        .route(&format!("{volume}/drain"), post(drain_volume))
        .route(&format!("{volume}/scrub"), post(scrub_volume))
        .route(&format!("{volume}/scrub/stop"), post(stop_scrub_of_volume))
        .route(&format!("{volume}/detach"), post(detach))
        .route(&format!("{volume}/attach"), post(attach))
        .route(&format!("{volume}/remove"), post(remove))
        .route(&format!("{volume}/resize"), post(resize))
        .route(&format!("{volume}/move"), post(move_backing))
        .route(&format!("{volume}/move/cancel"), post(cancel_move))
        .route(&format!("{volume}/remove-flash"), post(remove_flash))
        .route("/v1/sets", get(sets))
        .route(&format!("{set}/attributes"), get(attributes_of_set).patch(set_of_set))
        .route(&format!("{set}/attributes/{{attribute}}"), get(attribute_of_set).put(put_of_set))
        .route(&format!("{set}/buckets"), get(bucket_map))
        .route(&format!("{set}/advice"), get(advice))
        .route(&format!("{set}/flush"), post(flush_set))
        .route(&format!("{set}/drain"), post(drain_set))
        .route(&format!("{set}/scrub"), post(scrub_set))
        .route(&format!("{set}/scrub/stop"), post(stop_scrub_of_set))
        .route(&format!("{set}/gc"), post(gc))
        .route(&format!("{set}/add"), post(add))
        .route(&format!("{set}/replace-cache"), post(replace_cache))
        .route(&format!("{set}/resize-cache"), post(resize_cache))
        .route(&format!("{set}/resize-cache/cancel"), post(cancel_shrink))
        .route(&format!("{set}/forget-disk"), post(forget_disk))
        .route(&format!("{set}/flash"), post(create_flash))
        .merge(page::routes())
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(fleet.clone(), announce))
        .with_state(fleet)
}

/// The router of paths that show something and change nothing.
pub(super) fn look_only(fleet: Fleet) -> Router {
    Router::new()
        .route("/v1/openapi.json", get(openapi_json))
        .route("/v1/status", get(status))
        .route("/v1/metrics", get(metrics))
        .route("/v1/sets", get(sets))
        .route("/v1/volumes", get(volumes))
        .route("/v1/volumes/{volume}", get(one_volume))
        .route("/v1/volumes/{volume}/map", get(volume_map))
        .route("/v1/sets/{set}/buckets", get(bucket_map))
        .route("/v1/sets/{set}/advice", get(advice))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(fleet.clone(), pace))
        .with_state(fleet)
}

/// Lets a request wait for its turn.
async fn pace(State(fleet): State<Fleet>, request: Request, next: Next) -> Response {
    fleet.pace.turn().await;
    next.run(request).await
}

/// Reads all of a request, marks its connection as one that waits for an answer, and waits for the
/// request's turn. Refuses parameters behind the path, which only maps take.
async fn announce(
    State(fleet): State<Fleet>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(query) = request.uri().query()
        && !takes_cells(request.uri().path())
    {
        return Refusal::new(Kind::Malformed, "the request takes no parameters behind its path")
            .found(format_args!("?{query}"))
            .expected("options in the body, as a JSON object")
            .into_response();
    }
    let request = match whole(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    let _answering = connection.begin();
    // The end of the daemon waits for nobody's turn.
    if !matches!(request.uri().path(), "/v1/stop" | "/v1/upgrade") {
        fleet.pace.turn().await;
    }
    next.run(request).await
}

async fn no_path(uri: Uri) -> Refusal {
    Refusal::new(Kind::Missing, format_args!("there is no path {}", uri.path()))
        .advice("GET /v1/openapi.json lists all paths")
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let message = format_args!("{} does not take the method {method}", uri.path()).to_string();
    Refusal::new(Kind::Method, message).expected("a method that the header Allow lists")
}

type Given = Result<Response, Refusal>;

fn ok(value: &impl serde::Serialize) -> Response {
    json(StatusCode::OK, value)
}

/// The response to a request that gives nothing back.
fn done(answer: Answer) -> Given {
    answer.map(|_| StatusCode::NO_CONTENT.into_response())
}

/// The value in an answer.
fn value(answer: Answer) -> Result<serde_json::Value, Refusal> {
    Ok(match answer? {
        Reply::Value(value) => value,
        Reply::Done | Reply::Report(..) => serde_json::Value::Null,
    })
}

/// The response to a request that gives words, or a name, under that key.
fn named(key: &str, answer: Answer) -> Given {
    Ok(ok(&serde_json::json!({ key: value(answer)? })))
}

/// A path that means the same to the daemon, whose working directory is another one.
fn rooted(path: PathBuf) -> Result<PathBuf, Refusal> {
    match path.is_absolute() || is_uri(&path) {
        true => Ok(path),
        false => Err(Refusal::new(Kind::Unfit, "a path that does not begin at the root")
            .found(path.display())
            .expected("a path that begins with /")),
    }
}

async fn openapi_json() -> Response {
    with_text(StatusCode::OK, "application/json", openapi::text().to_owned())
}

async fn status(State(fleet): State<Fleet>) -> Response {
    ok(&fleet.report().await)
}

async fn devices(State(fleet): State<Fleet>) -> Given {
    Ok(ok(&fleet.list().await?))
}

async fn metrics(State(fleet): State<Fleet>) -> Response {
    with_text(StatusCode::OK, OPEN_METRICS, open_metrics(&fleet.report().await))
}

async fn stop(State(fleet): State<Fleet>, _: Options<Nothing>) -> Given {
    done(fleet.stop().await)
}

async fn upgrade(
    State(fleet): State<Fleet>,
    Extension(connection): Extension<Arc<Connection>>,
    Options(UpgradeOptions { program }): Options<UpgradeOptions>,
) -> Given {
    let program = program.map(rooted).transpose()?;
    let requester = connection.give_away().map_err(|error| {
        Refusal::new(Kind::Failed, format_args!("can't hand the connection over: {error}"))
    })?;
    let answer = fleet.upgrade(ControlRequest::Upgrade { program }, requester).await;
    connection.take_back();
    value(answer).map(|it| ok(&it))
}

async fn config_diff(State(fleet): State<Fleet>) -> Given {
    Ok(ok(&fleet.process(ProcessRequest::Diff).await?))
}

async fn config_apply(State(fleet): State<Fleet>, _: Options<Nothing>) -> Given {
    Ok(ok(&fleet.process(ProcessRequest::Apply).await?))
}

/// Volumes of the report, each with its set.
async fn reports(fleet: &Fleet) -> Vec<VolumeOfSet> {
    let report = fleet.report().await;
    let sets = report.sets.into_iter();
    let volumes = sets.flat_map(|of| {
        let (set, set_name) = (of.uuid, of.name);
        of.volumes.into_iter().map(move |volume| VolumeOfSet {
            set: set.clone(),
            set_name: set_name.clone(),
            volume,
        })
    });
    volumes.collect()
}

async fn volumes(State(fleet): State<Fleet>) -> Response {
    ok(&Volumes { volumes: reports(&fleet).await })
}

async fn one_volume(State(fleet): State<Fleet>, Name(name): Name) -> Given {
    let all = reports(&fleet).await;
    match all.iter().find(|it| it.is_named(&name)) {
        Some(volume) => Ok(ok(volume)),
        None => Err(Refusal::missing("export", &name, all.iter().map(|it| &*it.volume.name))),
    }
}

async fn sets(State(fleet): State<Fleet>) -> Response {
    let set = |set: &crate::control::SetHandle| {
        let names = set.names.get();
        SetNames { uuid: names.uuid, name: set.name.clone(), volumes: names.volumes }
    };
    ok(&Sets { sets: fleet.registry.all().iter().map(set).collect() })
}

async fn attributes_of_volume(State(fleet): State<Fleet>, Name(name): Name) -> Given {
    let request = ControlRequest::GetAll { volume: Some(name.clone()) };
    let all = value(fleet.ask_volume(&name, request).await)?;
    Ok(ok(only(&all["volumes"])))
}

/// The value of the only volume, which may have been asked for by another name.
fn only(volumes: &serde_json::Value) -> &serde_json::Value {
    let first = volumes.as_object().and_then(|volumes| volumes.values().next());
    first.unwrap_or(&serde_json::Value::Null)
}

async fn set_of_volume(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Json(Settings(settings)): Json<Settings>,
) -> Given {
    let request = ControlRequest::SetAll { settings, volume: Some(name.clone()) };
    done(fleet.ask_volume(&name, request).await)
}

async fn attribute_of_volume(State(fleet): State<Fleet>, Names(volume, name): Names) -> Given {
    let request = ControlRequest::Get { name, volume: Some(volume.clone()) };
    let all = value(fleet.ask_volume(&volume, request).await)?;
    Ok(ok(&serde_json::json!({ "value": only(&all) })))
}

async fn put_of_volume(
    State(fleet): State<Fleet>,
    Names(volume, name): Names,
    Json(Value { value }): Json<Value>,
) -> Given {
    let request = ControlRequest::Set { name, value: value.0, volume: Some(volume.clone()) };
    done(fleet.ask_volume(&volume, request).await)
}

async fn attributes_of_set(State(fleet): State<Fleet>, Name(set): Name) -> Given {
    Ok(ok(&value(fleet.ask_set(&set, ControlRequest::GetAll { volume: None }).await)?))
}

async fn set_of_set(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Json(Settings(settings)): Json<Settings>,
) -> Given {
    done(fleet.ask_set(&set, ControlRequest::SetAll { settings, volume: None }).await)
}

async fn attribute_of_set(State(fleet): State<Fleet>, Names(set, name): Names) -> Given {
    named("value", fleet.ask_set(&set, ControlRequest::Get { name, volume: None }).await)
}

async fn put_of_set(
    State(fleet): State<Fleet>,
    Names(set, name): Names,
    Json(Value { value }): Json<Value>,
) -> Given {
    let request = ControlRequest::Set { name, value: value.0, volume: None };
    done(fleet.ask_set(&set, request).await)
}

async fn volume_map(State(fleet): State<Fleet>, Name(name): Name, Cells(cells): Cells) -> Given {
    let request = ControlRequest::Map { volume: Some(name.clone()), cells };
    Ok(ok(&value(fleet.ask_volume(&name, request).await)?))
}

async fn bucket_map(State(fleet): State<Fleet>, Name(set): Name, Cells(cells): Cells) -> Given {
    Ok(ok(&value(fleet.ask_set(&set, ControlRequest::Buckets { cells }).await)?))
}

async fn advice(State(fleet): State<Fleet>, Name(set): Name) -> Given {
    Ok(ok(&value(fleet.ask_set(&set, ControlRequest::Advice).await)?))
}

async fn flush_volume(State(fleet): State<Fleet>, Name(name): Name, _: Options<Nothing>) -> Given {
    let request = ControlRequest::Flush { volume: Some(name.clone()) };
    done(fleet.ask_volume(&name, request).await)
}

async fn flush_set(State(fleet): State<Fleet>, Name(set): Name, _: Options<Nothing>) -> Given {
    done(fleet.ask_set(&set, ControlRequest::Flush { volume: None }).await)
}

async fn drain_volume(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(WaitOptions { wait }): Options<WaitOptions>,
) -> Given {
    let request = ControlRequest::Drain { volume: Some(name.clone()), wait };
    done(fleet.ask_volume(&name, request).await)
}

async fn drain_set(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Options(WaitOptions { wait }): Options<WaitOptions>,
) -> Given {
    done(fleet.ask_set(&set, ControlRequest::Drain { volume: None, wait }).await)
}

async fn scrub_volume(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(WaitOptions { wait }): Options<WaitOptions>,
) -> Given {
    let request = ControlRequest::Scrub { volume: Some(name.clone()), wait };
    Ok(ok(&value(fleet.ask_volume(&name, request).await)?))
}

async fn stop_scrub_of_volume(
    State(fleet): State<Fleet>,
    Name(name): Name,
    _: Options<Nothing>,
) -> Given {
    let request = ControlRequest::StopScrub { volume: Some(name.clone()) };
    Ok(ok(&value(fleet.ask_volume(&name, request).await)?))
}

async fn scrub_set(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Options(WaitOptions { wait }): Options<WaitOptions>,
) -> Given {
    let request = ControlRequest::Scrub { volume: None, wait };
    Ok(ok(&value(fleet.ask_set(&set, request).await)?))
}

async fn stop_scrub_of_set(
    State(fleet): State<Fleet>,
    Name(set): Name,
    _: Options<Nothing>,
) -> Given {
    Ok(ok(&value(fleet.ask_set(&set, ControlRequest::StopScrub { volume: None }).await)?))
}

async fn detach(State(fleet): State<Fleet>, Name(name): Name, _: Options<Nothing>) -> Given {
    let request = ControlRequest::Detach { volume: Some(name.clone()) };
    named("volume", fleet.ask_volume(&name, request).await)
}

async fn attach(State(fleet): State<Fleet>, Name(name): Name, _: Options<Nothing>) -> Given {
    let request = ControlRequest::Attach { volume: Some(name.clone()) };
    named("volume", fleet.ask_volume(&name, request).await)
}

async fn remove(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(RemoveOptions { keep_dirty }): Options<RemoveOptions>,
) -> Given {
    let request = ControlRequest::Remove { volume: Some(name.clone()), keep_dirty };
    named("message", fleet.ask_volume(&name, request).await)
}

async fn gc(State(fleet): State<Fleet>, Name(set): Name, _: Options<Nothing>) -> Given {
    done(fleet.ask_set(&set, ControlRequest::Gc).await)
}

async fn add(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Json(AddOptions { backing, name }): Json<AddOptions>,
) -> Given {
    named(
        "volume",
        fleet.ask_set(&set, ControlRequest::Add { backing: rooted(backing)?, name }).await,
    )
}

async fn replace_cache(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Json(ReplaceOptions { cache }): Json<ReplaceOptions>,
) -> Given {
    named(
        "message",
        fleet.ask_set(&set, ControlRequest::ReplaceCache { cache: rooted(cache)? }).await,
    )
}

async fn resize_cache(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Options(ResizeCacheOptions { size_bytes, wait }): Options<ResizeCacheOptions>,
) -> Given {
    let request = match size_bytes {
        Some(bytes) => ControlRequest::ShrinkCache { bytes, wait },
        None => ControlRequest::ResizeCache,
    };
    named("message", fleet.ask_set(&set, request).await)
}

async fn cancel_shrink(State(fleet): State<Fleet>, Name(set): Name, _: Options<Nothing>) -> Given {
    named("message", fleet.ask_set(&set, ControlRequest::CancelShrink).await)
}

async fn forget_disk(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Json(ForgetOptions { disk, discard_dirty }): Json<ForgetOptions>,
) -> Given {
    let request = ControlRequest::ForgetDisk { disk, discard_dirty };
    named("message", fleet.ask_set(&set, request).await)
}

async fn create_flash(
    State(fleet): State<Fleet>,
    Name(set): Name,
    Json(FlashOptions { name, size_bytes }): Json<FlashOptions>,
) -> Given {
    let request = ControlRequest::FlashCreate { name, bytes: size_bytes };
    named("volume", fleet.ask_set(&set, request).await)
}

async fn resize(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Json(ResizeOptions { size_bytes, discard_data }): Json<ResizeOptions>,
) -> Given {
    let volume = name.clone();
    let request = match size_bytes {
        Some(bytes) => ControlRequest::FlashResize { volume, bytes, discard_data },
        None => ControlRequest::Resize { volume: Some(volume) },
    };
    named("message", fleet.ask_volume(&name, request).await)
}

async fn move_backing(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Json(MoveOptions { to, force, wait, rate_bytes }): Json<MoveOptions>,
) -> Given {
    let (volume, to, rate) = (name.clone(), rooted(to)?, rate_bytes);
    let request = ControlRequest::Move { volume, to, force, wait, rate };
    named("message", fleet.ask_volume(&name, request).await)
}

async fn cancel_move(State(fleet): State<Fleet>, Name(name): Name, _: Options<Nothing>) -> Given {
    let request = ControlRequest::CancelMove { volume: name.clone() };
    named("message", fleet.ask_volume(&name, request).await)
}

async fn remove_flash(
    State(fleet): State<Fleet>,
    Name(name): Name,
    Options(RemoveFlashOptions { discard_data, force }): Options<RemoveFlashOptions>,
) -> Given {
    let volume = name.clone();
    let request = ControlRequest::FlashRemove { volume, discard_data, force };
    named("message", fleet.ask_volume(&name, request).await)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::openapi::OPERATIONS;
    use super::*;

    /// A path of the table without a route, or with another method, would be a document that is
    /// not true.
    #[test]
    fn every_operation_of_the_document_has_a_route() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (stream, _other) = tokio::net::UnixStream::pair().expect("sockets");
            let (busy, _busy) = tokio::sync::watch::channel(0);
            let connection = Connection::new(stream, busy);
            let service =
                TowerToHyperService::new(router(Fleet::new(Default::default(), "none".as_ref())));
            let mut ids = Vec::new();
            for operation in OPERATIONS {
                ids.push(operation.id());
                let path = operation.path.replace(['{', '}'], "");
                let method = operation.method.to_uppercase();
                let mut request = Request::builder().method(method.as_str()).uri(&path);
                request = request.extension(connection.clone());
                let request = request.body(Body::empty()).expect("a request");
                let response = service.call(request).await.expect("no errors");
                let status = response.status().as_u16();
                let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
                let body = String::from_utf8(body.expect("a body").into()).expect("UTF-8");
                assert!(status != 405, "{method} {path}: {body}");
                assert!(!body.contains("there is no path"), "{method} {path}: {body}");
            }
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), OPERATIONS.len(), "names of operations are given once");
        });
    }
}
