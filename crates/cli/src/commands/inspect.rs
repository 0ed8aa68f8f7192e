//! `kiln inspect`, and its forms for containers and images alone: docker's JSON.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kiln_engine::container::{Container, find};
use kiln_engine::images::{best, id, size, try_find};
use kiln_engine::oci::{Platform, Reference};
use kiln_engine::store::{Image, ManifestView, Store};
use serde_json::{Map, Value, json};

use super::container_json::describe as describe_container;
use super::parse::platform;
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::invalid;
use crate::output;
use crate::template::Template;

/// Show all that is known of containers and images, as JSON
///
/// A name that both have is the container's, unless --type says otherwise.
///
/// Examples:
///   kiln inspect app
///   kiln inspect --format '{{.Config.Entrypoint}}' app
///   kiln inspect -f '{{json .Config.Labels}}' app
///   kiln inspect -f '{{range .Config.Env}}{{println .}}{{end}}' app
///   kiln inspect -f '{{.State.ExitCode}}' tests
///   kiln inspect --platform linux/arm64 -f '{{.Architecture}}' app
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct InspectArgs {
    /// Containers and images: names, or beginnings of IDs
    #[arg(required = true, value_name = "NAME", add = super::complete::images_and_containers())]
    names: Vec<String>,
    /// json, or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Of an image for several platforms, this one
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// What is meant
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Image,
}

/// Prints the JSON, or what the template makes of it. What is not found is told after the others.
pub fn run(args: &InspectArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    inspect(args, args.kind, environment)
}

/// `kiln image inspect`.
pub fn run_images(args: &InspectArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    inspect(args, Some(Kind::Image), environment)
}

/// `kiln container inspect`.
pub fn run_containers(args: &InspectArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    inspect(args, Some(Kind::Container), environment)
}

fn inspect(args: &InspectArgs, kind: Option<Kind>, environment: &Environment) -> Result<ExitCode, CliError> {
    let template = match args.format.as_deref() {
        None | Some("json" | "") => None,
        Some(text) => Some(Template::parse(text).map_err(invalid)?),
    };
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let store = environment.store()?;
    let (mut found, mut failed) = (Vec::new(), None);
    for text in &args.names {
        let container = match kind {
            Some(Kind::Image) => None,
            _ => container(&store, text)?,
        };
        let value = match (container, kind) {
            (Some(container), _) => Ok(describe_container(&container)),
            (None, Some(Kind::Container)) => Err(CliError::failed(format!("No such container: {text}"))),
            (None, _) => look_up(&store, text, wanted.as_ref()),
        };
        match value {
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

fn container(store: &Store, text: &str) -> Result<Option<Container>, CliError> {
    match find(store.root(), text) {
        Ok(mut container) => {
            container.settle(store).map_err(kiln_engine::Error::from)?;
            Ok(Some(container))
        }
        Err(kiln_engine::container::Error::Missing(_)) => Ok(None),
        Err(e) => Err(kiln_engine::Error::from(e).into()),
    }
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
