//! What `kiln inspect` shows of a container: docker's fields.

use kiln_engine::container::{Container, Status};
use kiln_engine::oci::Timestamp;
use serde_json::{Value, json};

/// Docker's time of what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// All that is known of it.
pub fn describe(container: &Container) -> Value {
    let config = &container.config;
    let argv = container.argv();
    let (path, args) = argv.split_first().map_or(("", &[][..]), |(path, args)| (path.as_str(), args));
    let ports: serde_json::Map<String, Value> =
        config.ports.iter().map(|p| (format!("{p}/tcp"), json!([{"HostIp": "", "HostPort": p.to_string()}]))).collect();
    json!({
        "Id": config.id,
        "Created": time(config.created),
        "Path": path,
        "Args": args,
        "State": state(container),
        "Image": config.image_id,
        "LogPath": container.log_path(),
        "Name": format!("/{}", config.name),
        "RestartCount": 0,
        "Driver": "overlay",
        "Platform": "linux",
        "HostConfig": {
            "AutoRemove": config.auto_remove,
            "Binds": config.binds.iter().map(bind).collect::<Vec<_>>(),
            "Init": config.init,
            "LogConfig": log_config(container),
            "NetworkMode": if config.host_network { "host" } else { "none" },
            "PortBindings": ports,
            "ReadonlyRootfs": config.read_only,
        },
        "Mounts": config.binds.iter().map(|b| json!({
            "Type": "bind",
            "Source": b.source,
            "Destination": b.target,
            "Mode": if b.readonly { "ro" } else { "" },
            "RW": !b.readonly,
            "Propagation": "rprivate",
        })).collect::<Vec<_>>(),
        "Config": {
            "Hostname": config.hostname,
            "User": config.user,
            "Tty": config.tty,
            "OpenStdin": config.interactive,
            "Env": config.env,
            "Cmd": config.command,
            "Image": config.image,
            "WorkingDir": config.workdir,
            "Entrypoint": if config.entrypoint.is_empty() { Value::Null } else { json!(config.entrypoint) },
            "Labels": config.labels,
            "StopSignal": config.stop_signal,
        },
    })
}

fn state(container: &Container) -> Value {
    let state = &container.state;
    let running = container.status() == Status::Running;
    json!({
        "Status": container.status().name(),
        "Running": running,
        "Paused": false,
        "Restarting": false,
        "OOMKilled": false,
        "Dead": false,
        "Pid": state.process.as_ref().filter(|_| running).map_or(0, |p| p.pid),
        "ExitCode": container.exit_code(),
        "Error": state.error,
        "StartedAt": time(state.started),
        "FinishedAt": time(state.finished.filter(|_| container.status() == Status::Exited)),
    })
}

fn log_config(container: &Container) -> Value {
    let config = &container.config;
    if config.unlogged {
        return json!({"Type": "none", "Config": {}});
    }
    let limits = &config.log_limits;
    let options = match limits.size {
        Some(size) => json!({"max-size": size.to_string(), "max-file": limits.files.to_string()}),
        None => json!({}),
    };
    json!({"Type": "json-file", "Config": options})
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.to_owned(), |at| at.to_string())
}

fn bind(bind: &kiln_engine::container::Bind) -> String {
    let mode = if bind.readonly { ":ro" } else { "" };
    format!("{}:{}{mode}", bind.source.display(), bind.target.display())
}
