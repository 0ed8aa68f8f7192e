//! `--change`: instructions of a Dockerfile that change an image's config.

use kiln_dockerfile::{InstructionKind, parse};
use kiln_frontend::{BoxError, LowerError, LowerRequest, MetaResolver, Resolved, lower};
use kiln_graph::SourceOp;
use kiln_oci::{ContainerConfig, Platform};

use crate::error::{Error, Result};

/// What `FROM scratch` sets, and an import does not.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The config that these instructions make of an empty one.
pub fn changed_config(changes: &[String], platform: &Platform) -> Result<ContainerConfig> {
    if changes.is_empty() {
        return Ok(ContainerConfig::default());
    }
    let text = format!("FROM scratch\n{}\n", changes.join("\n"));
    let parsed = parse(text.as_bytes(), "--change");
    if parsed.has_errors() {
        let first = parsed.diagnostics.iter().find(|d| d.is_error()).map_or("", |d| &d.message).to_owned();
        return Err(Error::request(format!("--change: {first}")));
    }
    let dockerfile = parsed.dockerfile;
    if dockerfile.stages.len() != 1
        || dockerfile.stages.iter().flat_map(|s| &s.instructions).any(|i| !is_config(&i.kind))
    {
        return Err(Error::request(
            "--change takes CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR",
        ));
    }
    let mut request = LowerRequest::new(&dockerfile, platform.clone());
    request.platforms = vec![platform.clone()];
    let lowered = lower(&request, &NoImages).map_err(|e| match e {
        LowerError::Dockerfile(diagnostic) | LowerError::Resolve { diagnostic, .. } => {
            Error::request(format!("--change: {}", diagnostic.message))
        }
        other => Error::request(format!("--change: {other}")),
    })?;
    let config = lowered.images.into_iter().next().map(|i| i.config.config);
    let mut config = config.ok_or_else(|| Error::request("--change: there is nothing to change"))?;
    if !changes.iter().any(|c| c.contains("PATH")) {
        config.env.retain(|e| e != DEFAULT_PATH);
    }
    Ok(config)
}

fn is_config(kind: &InstructionKind) -> bool {
    matches!(
        kind,
        InstructionKind::Cmd(_)
            | InstructionKind::Entrypoint(_)
            | InstructionKind::Env(_)
            | InstructionKind::Expose(_)
            | InstructionKind::Healthcheck(_)
            | InstructionKind::Label(_)
            | InstructionKind::Onbuild(_)
            | InstructionKind::Stopsignal(_)
            | InstructionKind::User(_)
            | InstructionKind::Volume(_)
            | InstructionKind::Workdir(_)
    )
}

/// `FROM scratch` asks for none.
struct NoImages;

impl MetaResolver for NoImages {
    fn resolve(&self, _: &SourceOp, _: &Platform, name: &str) -> std::result::Result<Resolved, BoxError> {
        Err(format!("{name}: there are no images here").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[&str]) -> Result<ContainerConfig> {
        changed_config(&changes.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>(), &Platform::host())
    }

    #[test]
    fn instructions_change_the_config() {
        let made =
            config(&["CMD [\"/bin/sh\"]", "ENV A=b C=$A", "EXPOSE 80", "WORKDIR /w", "user me", "LABEL x=y"]).unwrap();
        assert_eq!(made.cmd, Some(vec!["/bin/sh".to_owned()]));
        assert_eq!(made.env[0], "A=b");
        assert!(made.exposed_ports.contains_key("80/tcp") && made.labels["x"] == "y");
        assert_eq!((made.working_dir.as_str(), made.user.as_str()), ("/w", "me"));
        assert_eq!(config(&[]).unwrap(), ContainerConfig::default());
    }

    #[test]
    fn what_would_change_files_is_refused() {
        for bad in ["RUN x", "COPY a b", "FROM x", "ENV a=b\nRUN x", "NOPE", "EXPOSE x"] {
            assert!(config(&[bad]).unwrap_err().to_string().contains("--change"), "{bad}");
        }
    }
}
