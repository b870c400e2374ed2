//! The OpenAPI document: paths from the table below, forms of what is sent from the types that are
//! sent. docs/reference/openapi.json is the same, and a test compares them.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{ComponentsBuilder, RefOr, Schema};

use super::forms::{
    AddOptions, FlashOptions, ForgetOptions, Message, MoveOptions, Nothing, OPEN_METRICS,
    RemoveFlashOptions, RemoveOptions, ReplaceOptions, ResizeCacheOptions, ResizeOptions, Sets,
    UpgradeOptions, Upgraded, VolumeName, VolumeOfSet, Volumes, WaitOptions,
};
use super::settings::{EXACT_MAX, ValueForm};
use crate::control::process::ConfigChanges;
use crate::control::refusal::{ErrorBody, Kind};
use crate::list::Listing;
use crate::served::advice::report::AdviceReport;
use crate::served::maps::{BucketsReport, CELLS, CELLS_MAX, VolumeMapReport};
use crate::served::report::Report;
use crate::served::scrub_report::Scrubs;

/// A value.
pub(super) enum Form {
    Nothing,
    /// A form by its name.
    Named(&'static str),
    /// Attributes and their values.
    Attributes,
    /// Attributes of a set, and of its volumes.
    AllAttributes,
    /// The value of an attribute, or those of volumes.
    AttributeOfSet,
    /// Anything.
    Document,
    Metrics,
}

/// A method of a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    summary: &'static str,
    body: Option<&'static str>,
    body_required: bool,
    result: Form,
    /// It takes a number of cells behind its path.
    cells: bool,
}

const fn look(path: &'static str, summary: &'static str, result: Form) -> Operation {
    Operation {
        method: "get",
        path,
        summary,
        body: None,
        body_required: false,
        result,
        cells: false,
    }
}

const fn draw(path: &'static str, summary: &'static str, result: &'static str) -> Operation {
    Operation { cells: true, ..look(path, summary, Form::Named(result)) }
}

const fn act(
    path: &'static str,
    summary: &'static str,
    body: &'static str,
    result: Form,
) -> Operation {
    let body_required = matches!(
        body.as_bytes(),
        b"AddOptions"
            | b"ReplaceOptions"
            | b"ForgetOptions"
            | b"FlashOptions"
            | b"ResizeOptions"
            | b"MoveOptions"
    );
    Operation {
        method: "post",
        path,
        summary,
        body: Some(body),
        body_required,
        result,
        cells: false,
    }
}

const fn change(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    body: &'static str,
) -> Operation {
    let result = Form::Nothing;
    let body = Some(body);
    Operation { method, path, summary, body, body_required: true, result, cells: false }
}

/// Requests that take no options.
const NOTHING: &str = "Nothing";

pub(super) const OPERATIONS: &[Operation] = &[
    look("/v1/status", "The report of `ubcache status --json`.", Form::Named("Report")),
    look("/v1/metrics", "The numbers of the report as OpenMetrics text.", Form::Metrics),
    look("/v1/devices", "The list of `ubcache list --json`.", Form::Named("Listing")),
    look("/v1/openapi.json", "This document.", Form::Document),
    look("/v1/sets", "The sets, by their names.", Form::Named("Sets")),
    look("/v1/volumes", "The report on all volumes.", Form::Named("Volumes")),
    look("/v1/volumes/{volume}", "The report on a volume.", Form::Named("VolumeOfSet")),
    draw(
        "/v1/volumes/{volume}/map",
        "The ranges of a volume that the cache has, in cells.",
        "VolumeMapReport",
    ),
    look("/v1/volumes/{volume}/attributes", "The attributes of a volume.", Form::Attributes),
    change(
        "patch",
        "/v1/volumes/{volume}/attributes",
        "Set attributes of a volume: all of them, or none.",
        "Settings",
    ),
    look(
        "/v1/volumes/{volume}/attributes/{attribute}",
        "An attribute of a volume.",
        Form::Named("AttributeValue"),
    ),
    change(
        "put",
        "/v1/volumes/{volume}/attributes/{attribute}",
        "Set an attribute of a volume.",
        "NewValue",
    ),
    act(
        "/v1/volumes/{volume}/flush",
        "Make durable what clients were told is written.",
        NOTHING,
        Form::Nothing,
    ),
    act(
        "/v1/volumes/{volume}/drain",
        "Write back all dirty data of a volume.",
        "WaitOptions",
        Form::Nothing,
    ),
    act(
        "/v1/volumes/{volume}/scrub",
        "Compare the clean cached data of a volume with its disk, and drop what differs.",
        "WaitOptions",
        Form::Named("Scrubs"),
    ),
    act("/v1/volumes/{volume}/scrub/stop", "End the scrub.", NOTHING, Form::Named("Scrubs")),
    act(
        "/v1/volumes/{volume}/detach",
        "Write back the dirty data of a volume and detach it from its cache; it stays served.",
        NOTHING,
        Form::Named("VolumeName"),
    ),
    act(
        "/v1/volumes/{volume}/attach",
        "Give a detached volume its cache again, empty.",
        NOTHING,
        Form::Named("VolumeName"),
    ),
    act(
        "/v1/volumes/{volume}/remove",
        "End an export, after its dirty data was written back.",
        "RemoveOptions",
        Form::Named("Message"),
    ),
    draw("/v1/sets/{set}/buckets", "The buckets of the cache device, in cells.", "BucketsReport"),
    look(
        "/v1/sets/{set}/advice",
        "What other sizes of the cache would do, and the settings that fit the traffic.",
        Form::Named("AdviceReport"),
    ),
    look(
        "/v1/sets/{set}/attributes",
        "The attributes of a set, and of all its volumes.",
        Form::AllAttributes,
    ),
    change(
        "patch",
        "/v1/sets/{set}/attributes",
        "Set attributes: each of all volumes, or of the set if volumes have none of that name; \
         all of them, or none.",
        "Settings",
    ),
    look(
        "/v1/sets/{set}/attributes/{attribute}",
        "An attribute of a set; or of all its volumes, by their names.",
        Form::AttributeOfSet,
    ),
    change(
        "put",
        "/v1/sets/{set}/attributes/{attribute}",
        "Set an attribute of all volumes, or of the set if volumes have none of that name.",
        "NewValue",
    ),
    act(
        "/v1/sets/{set}/flush",
        "Make durable what clients of all volumes were told is written.",
        NOTHING,
        Form::Nothing,
    ),
    act(
        "/v1/sets/{set}/drain",
        "Write back all dirty data of all volumes.",
        "WaitOptions",
        Form::Nothing,
    ),
    act(
        "/v1/sets/{set}/scrub",
        "Compare the clean cached data of all volumes with their disks, and drop what differs.",
        "WaitOptions",
        Form::Named("Scrubs"),
    ),
    act("/v1/sets/{set}/scrub/stop", "End these scrubs.", NOTHING, Form::Named("Scrubs")),
    act("/v1/sets/{set}/gc", "Collect garbage now.", NOTHING, Form::Nothing),
    act(
        "/v1/sets/{set}/add",
        "Serve one more backing device.",
        "AddOptions",
        Form::Named("VolumeName"),
    ),
    act(
        "/v1/sets/{set}/replace-cache",
        "Give the volumes that need no cache another one.",
        "ReplaceOptions",
        Form::Named("Message"),
    ),
    act(
        "/v1/sets/{set}/resize-cache",
        "Make the cache smaller, or give it the size that its device has, from the next start on.",
        "ResizeCacheOptions",
        Form::Named("Message"),
    ),
    act(
        "/v1/sets/{set}/resize-cache/cancel",
        "Have a cache that is becoming smaller keep its size.",
        NOTHING,
        Form::Named("Message"),
    ),
    act(
        "/v1/sets/{set}/forget-disk",
        "Forget a disk that is gone for good, with what the cache has of it.",
        "ForgetOptions",
        Form::Named("Message"),
    ),
    act(
        "/v1/sets/{set}/flash",
        "Make a flash-only volume, and serve it.",
        "FlashOptions",
        Form::Named("VolumeName"),
    ),
    act(
        "/v1/volumes/{volume}/resize",
        "Give a volume the size that its disk has now, or a flash-only one another size.",
        "ResizeOptions",
        Form::Named("Message"),
    ),
    act(
        "/v1/volumes/{volume}/move",
        "Move a volume to another disk, while clients use it.",
        "MoveOptions",
        Form::Named("Message"),
    ),
    act("/v1/volumes/{volume}/move/cancel", "End a move.", NOTHING, Form::Named("Message")),
    act(
        "/v1/volumes/{volume}/remove-flash",
        "Remove a flash-only volume for good.",
        "RemoveFlashOptions",
        Form::Named("Message"),
    ),
    act(
        "/v1/stop",
        "Stop the daemon; the response comes when everything is on the devices.",
        NOTHING,
        Form::Nothing,
    ),
    look(
        "/v1/config/diff",
        "The differences between the configuration files and what is in effect.",
        Form::Named("ConfigChanges"),
    ),
    act(
        "/v1/config/apply",
        "Put into effect what the configuration files say, as far as clients can go on.",
        NOTHING,
        Form::Named("ConfigChanges"),
    ),
    act(
        "/v1/upgrade",
        "Let another program go on with all clients; it gives the response.",
        "UpgradeOptions",
        Form::Named("Upgraded"),
    ),
];

const REFUSALS: [(Kind, &str); 8] = [
    (Kind::Malformed, "The request can't be read."),
    (Kind::Missing, "There is no such set, volume or attribute."),
    (Kind::Late, "The request did not come whole in time."),
    (Kind::Conflict, "Not in the state in which the set is."),
    (Kind::TooLarge, "The body is too large."),
    (Kind::Unfit, "A value that is not accepted."),
    (Kind::Failed, "A device has failed."),
    (Kind::Busy, "Not now: an upgrade is under way, or too many requests are."),
];

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn parameter(name: &str) -> Value {
    let description = match name {
        "volume" => "Name of an export.",
        "set" => "UUID of a set, or its name in the configuration.",
        _ => "Name of an attribute, as in bcache's sysfs.",
    };
    json!({
        "name": name, "in": "path", "required": true, "description": description,
        "schema": { "type": "string", "minLength": 1 },
    })
}

impl Operation {
    /// The name of the operation: its method and the words of its path.
    pub(super) fn id(&self) -> String {
        let words = self.path.trim_start_matches("/v1/").split(['/', '.', '-']);
        let words = words.map(|word| word.trim_matches(['{', '}']));
        std::iter::once(self.method).chain(words).collect::<Vec<_>>().join("_")
    }

    fn success(&self) -> (u16, Value) {
        let strings = json!({ "type": "object", "additionalProperties": { "type": "string" } });
        let (kind, schema) = match &self.result {
            Form::Nothing => return (204, json!({ "description": "Done." })),
            Form::Named(name) => ("application/json", reference(name)),
            Form::Attributes => ("application/json", strings),
            Form::AllAttributes => (
                "application/json",
                json!({
                    "type": "object", "required": ["set", "volumes"],
                    "properties": {
                        "set": strings,
                        "volumes": { "type": "object", "additionalProperties": strings },
                    },
                }),
            ),
            Form::AttributeOfSet => (
                "application/json",
                json!({
                    "type": "object", "required": ["value"],
                    "properties": { "value": { "oneOf": [{ "type": "string" }, strings] } },
                }),
            ),
            Form::Document => ("application/json", json!({ "type": "object" })),
            Form::Metrics => (OPEN_METRICS, json!({ "type": "string" })),
        };
        (200, json!({ "description": "Done.", "content": { kind: { "schema": schema } } }))
    }

    fn describe(&self) -> Value {
        let (status, success) = self.success();
        let mut responses = Map::from_iter([(status.to_string(), success)]);
        for (kind, _) in REFUSALS {
            let response = json!({ "$ref": format!("#/components/responses/{kind:?}") });
            responses.insert(kind.status().to_string(), response);
        }
        let mut operation = json!({
            "operationId": self.id(), "summary": self.summary, "responses": responses,
        });
        let names = self.path.split('/').filter_map(|part| part.strip_prefix('{'));
        let mut parameters: Vec<Value> =
            names.map(|name| parameter(name.trim_end_matches('}'))).collect();
        if self.cells {
            parameters.push(json!({
                "name": "cells", "in": "query", "description": "Most cells of the map.",
                "schema": {
                    "type": "integer", "minimum": 1, "maximum": CELLS_MAX, "default": CELLS,
                },
            }));
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = json!({
                "required": self.body_required,
                "content": { "application/json": { "schema": reference(body) } },
            });
        }
        operation
    }
}

/// The form of a type, with those of what it is made of.
fn form<T: ToSchema>(forms: &mut Vec<(String, RefOr<Schema>)>) {
    forms.push((T::name().into_owned(), T::schema()));
    T::schemas(forms);
}

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.describe();
    }
    let mut forms = Vec::new();
    form::<Report>(&mut forms);
    form::<Sets>(&mut forms);
    form::<Volumes>(&mut forms);
    form::<VolumeOfSet>(&mut forms);
    form::<VolumeName>(&mut forms);
    form::<Message>(&mut forms);
    form::<Upgraded>(&mut forms);
    form::<Scrubs>(&mut forms);
    form::<ValueForm>(&mut forms);
    form::<Nothing>(&mut forms);
    form::<WaitOptions>(&mut forms);
    form::<RemoveOptions>(&mut forms);
    form::<AddOptions>(&mut forms);
    form::<ReplaceOptions>(&mut forms);
    form::<ForgetOptions>(&mut forms);
    form::<FlashOptions>(&mut forms);
    form::<ResizeOptions>(&mut forms);
    form::<MoveOptions>(&mut forms);
    form::<ResizeCacheOptions>(&mut forms);
    form::<RemoveFlashOptions>(&mut forms);
    form::<UpgradeOptions>(&mut forms);
    form::<ErrorBody>(&mut forms);
    form::<ConfigChanges>(&mut forms);
    form::<VolumeMapReport>(&mut forms);
    form::<BucketsReport>(&mut forms);
    form::<AdviceReport>(&mut forms);
    form::<Listing>(&mut forms);
    let components = ComponentsBuilder::new().schemas_from_iter(forms).build();
    let mut components = serde_json::to_value(components).expect("plain data always serializes");
    for (kind, words) in REFUSALS {
        let content = json!({ "application/json": { "schema": reference("ErrorBody") } });
        let response = json!({ "description": words, "content": content });
        components["responses"][format!("{kind:?}")] = response;
    }
    let scalar = json!({
        "description": "As `ubcache set` takes it, with suffixes; or an integer; or a boolean.",
        "type": ["string", "integer", "boolean"],
        "minimum": -(EXACT_MAX as i64), "maximum": EXACT_MAX,
    });
    let schemas = &mut components["schemas"];
    schemas["NewValue"] = json!({
        "type": "object", "required": ["value"], "properties": { "value": scalar },
        "additionalProperties": false,
    });
    schemas["Settings"] = json!({
        "description": "Names of attributes, and their new values.",
        "type": "object", "additionalProperties": scalar,
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ubcache control API",
            "description": "On the control socket of a daemon: `curl --unix-socket SOCKET \
                http://localhost/v1/status`.",
            "version": "1",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": components,
    })
}

/// The text of the document, as docs/reference/openapi.json has it.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let text = serde_json::to_string_pretty(&document());
        text.expect("plain data always serializes") + "\n"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_in_the_reference_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/openapi.json");
        if std::env::var_os("UBCACHE_TEST_WRITE").is_some() {
            std::fs::write(path, text()).expect("the reference");
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        let advice = "UBCACHE_TEST_WRITE=1 cargo test -p ubcache-daemon the_document";
        assert!(there == text(), "{path} is another one; write it with: {advice}");
    }

    #[test]
    fn every_form_that_the_document_refers_to_is_in_it() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    for (key, value) in map {
                        match (key.as_str(), value.as_str()) {
                            ("$ref", Some(name)) => found.push(name.to_owned()),
                            _ => references(value, found),
                        }
                    }
                }
                Value::Array(values) => values.iter().for_each(|it| references(it, found)),
                _ => {}
            }
        }
        let (document, mut found) = (document(), Vec::new());
        references(&document, &mut found);
        assert!(found.len() > 50);
        for name in found {
            let pointer = name.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{name} is missing");
        }
    }
}
