//! `kiln inspect`, the same as `kiln image inspect`: docker's JSON.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::{best, id, size, try_find};
use kiln_engine::oci::{Platform, Reference};
use kiln_engine::store::{Image, ManifestView, Store};
use serde_json::{Map, Value, json};

use super::parse::platform;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::invalid;
use crate::output;
use crate::template::Template;

/// Show all that is known of images, as JSON
///
/// Examples:
///   kiln inspect app
///   kiln inspect --format '{{.Config.Entrypoint}}' app
///   kiln inspect -f '{{json .Config.Labels}}' app
///   kiln inspect -f '{{range .Config.Env}}{{println .}}{{end}}' app
///   kiln inspect --platform linux/arm64 -f '{{.Architecture}}' app
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct InspectArgs {
    /// Images: names, or beginnings of IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// json, or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Of an image for several platforms, this one
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// What is meant; only image is known
    #[arg(long = "type", value_name = "TYPE", value_parser = ["image"], hide = true)]
    kind: Option<String>,
}

/// Prints the JSON, or what the template makes of it. What is not found is told after the others.
pub fn run(args: &InspectArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let template = match args.format.as_deref() {
        None | Some("json" | "") => None,
        Some(text) => Some(Template::parse(text).map_err(invalid)?),
    };
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let store = environment.store()?;
    let (mut found, mut failed) = (Vec::new(), None);
    for text in &args.images {
        match look_up(&store, text, wanted.as_ref()) {
            Ok(value) => found.push(value),
            Err(e) => {
                if let Some(before) = failed.replace(e) {
                    before.show();
                }
            }
        }
    }
    match (&template, args.format.as_deref()) {
        (Some(template), _) => {
            for value in &found {
                output::print(&format!("{}\n", template.render(value).map_err(invalid)?))?;
            }
        }
        (None, Some("json")) => output::print(&format!("{}\n", Value::Array(compact(found))))?,
        (None, _) => output::print(&pretty(&Value::Array(compact(found)))?)?,
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn look_up(store: &Store, text: &str, wanted: Option<&Platform>) -> Result<Value, CliError> {
    let image = match try_find(store, text)? {
        Some(image) => image,
        None => kiln_engine::images::find(store, text)?,
    };
    let view = best(store, &image.target, wanted)?;
    describe(store, &image, &view)
}

/// Docker's fields. Those of the config that are not set are there as null, for templates.
fn describe(store: &Store, image: &Image, view: &ManifestView) -> Result<Value, CliError> {
    let names: Vec<Reference> = store
        .images()
        .of(&image.target.digest)
        .map_err(kiln_engine::Error::from)?
        .into_iter()
        .filter_map(|i| i.name)
        .collect();
    let tags: Vec<String> = names.iter().filter(|n| n.tag().is_some()).map(Reference::familiar).collect();
    let mut digests: Vec<String> = names.iter().map(|n| n.with_digest(image.target.digest).familiar()).collect();
    digests.dedup();
    let config = &view.config;
    let comment = config.history.last().and_then(|h| h.comment.clone()).unwrap_or_default();
    Ok(json!({
        "Id": id(image).to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": comment,
        "Created": config.created.map(|t| t.to_string()),
        "DockerVersion": "",
        "Author": config.author,
        "Config": container_config(&config.config),
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "Size": size(store, &view.manifest, config)?,
        "RootFS": {"Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids},
        "Metadata": {"LastTagTime": image.updated.to_string()},
        "Descriptor": view.descriptor,
        "History": config.history,
    }))
}

/// The config with all fields that docker has.
fn container_config(config: &kiln_engine::oci::ContainerConfig) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    let known = [
        "User",
        "ExposedPorts",
        "Env",
        "Cmd",
        "Healthcheck",
        "ArgsEscaped",
        "Volumes",
        "WorkingDir",
        "Entrypoint",
        "OnBuild",
        "Labels",
        "StopSignal",
        "Shell",
    ];
    if let Value::Object(map) = &mut value {
        for field in known {
            let text = matches!(field, "User" | "WorkingDir" | "StopSignal");
            map.entry(field).or_insert_with(|| if text { "".into() } else { Value::Null });
        }
    }
    value
}

/// Without fields of the config that say nothing, as docker prints it.
fn compact(values: Vec<Value>) -> Vec<Value> {
    let keep = |field: &str, v: &Value| {
        let always =
            matches!(field, "Env" | "Cmd" | "Entrypoint" | "Labels" | "User" | "WorkingDir" | "Volumes" | "OnBuild");
        always || !(v.is_null() || v.as_str() == Some(""))
    };
    let mut values = values;
    for value in &mut values {
        if let Some(Value::Object(config)) = value.get_mut("Config") {
            let all: Map<String, Value> = std::mem::take(config);
            *config = all.into_iter().filter(|(f, v)| keep(f, v)).collect();
        }
        if let Value::Object(map) = value {
            map.retain(|field, v| field != "History" && !(field == "Variant" && v.as_str() == Some("")));
        }
    }
    values
}

/// Four spaces, as docker indents.
fn pretty(value: &Value) -> Result<String, CliError> {
    use serde_json::ser::{PrettyFormatter, Serializer};
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    serde::Serialize::serialize(value, &mut serializer).map_err(|e| CliError::failed(e.to_string()))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|e| CliError::failed(e.to_string()))
}
