//! The instructions that only change the config, and `WORKDIR`, which also makes its directory.

use kiln_dockerfile::{
    Arg, Command, ExpandMode, Healthcheck, KeyValue, Spanned, expand_words, is_in_environment, nearest, parse_port_spec,
};
use kiln_graph::{ActionInput, FileAction, FileActionKind, FileOp, MkdirAction, Op};
use kiln_oci::{Empty, Health, signal};

use crate::copy::owner;
use crate::gofmt::{plain_list, quote_health, quote_list};
use crate::plan::Step;
use crate::request::LowerError;
use crate::stage::{StageLowering, join};

type Result = std::result::Result<(), LowerError>;

/// All ports of the three protocols.
const MOST_PORTS: usize = 3 << 16;

impl StageLowering<'_, '_, '_> {
    pub fn arg(&mut self, step: &Step, arg: &Arg) -> Result {
        let mut shown = Vec::with_capacity(arg.args.len());
        for declared in &arg.args {
            let name = &declared.name.value;
            let given = match self.all.epoch.filter(|_| name == "SOURCE_DATE_EPOCH") {
                // The build arg may be the name of a context, and means its time.
                Some(epoch) => Some(epoch.to_string()),
                None => self.all.request.build_args.get(name).cloned(),
            };
            let value = match (&given, &declared.default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => Some(self.expand(step, default)?),
                (None, None) => self.all.globals.env.get(name).map(str::to_owned),
            };
            // Nobody has to be told of TARGETARCH and the like.
            let predefined = given.is_none() && declared.default.is_none() && self.all.globals.is_predefined(name);
            if !predefined {
                self.all.capture.declared(declared, step, value.as_deref());
            }
            shown.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            if let Some(value) = value.as_deref().filter(|_| is_in_environment(name)) {
                self.state.env.set(name, value);
            }
            self.state.args.set(name, value.as_deref().unwrap_or_default());
        }
        self.state.commit(format!("ARG {}", shown.join(" ")), false);
        Ok(())
    }

    pub fn env(&mut self, step: &Step, pairs: &[KeyValue]) -> Result {
        let pairs = self.expand_pairs(step, pairs)?;
        let mut text = String::from("ENV");
        for (key, value) in pairs {
            text += &format!(" {key}={value}");
            self.state.env.set(&key, &value);
            self.state.image_env.set(&key, &value);
        }
        self.state.commit(text, false);
        Ok(())
    }

    pub fn label(&mut self, step: &Step, pairs: &[KeyValue]) -> Result {
        let pairs = self.expand_pairs(step, pairs)?;
        let mut text = String::from("LABEL");
        for (key, value) in pairs {
            text += &format!(" {key}={value}");
            self.state.config.config.labels.insert(key, value);
        }
        self.state.commit(text, false);
        Ok(())
    }

    /// All pairs are expanded before the first is set: `ENV A=1 B=$A` uses the old `A`.
    fn expand_pairs(&self, step: &Step, pairs: &[KeyValue]) -> std::result::Result<Vec<(String, String)>, LowerError> {
        pairs.iter().map(|p| Ok((self.expand(step, &p.key)?, self.expand(step, &p.value)?))).collect()
    }

    pub fn maintainer(&mut self, name: &Spanned<String>) -> Result {
        self.state.config.author.clone_from(&name.value);
        self.state.commit(format!("MAINTAINER {name}"), false);
        Ok(())
    }

    fn command_line(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(text) | Command::Script { content: text, .. } => self.state.with_shell(text),
        }
    }

    pub fn cmd(&mut self, command: &Command) -> Result {
        let args = self.command_line(command);
        self.state.commit(format!("CMD {}", quote_list(&args)), false);
        self.state.config.config.cmd = Some(args);
        self.state.config.config.args_escaped = Some(true);
        self.state.has_cmd = true;
        Ok(())
    }

    pub fn entrypoint(&mut self, command: &Command) -> Result {
        let args = self.command_line(command);
        self.state.commit(format!("ENTRYPOINT {}", quote_list(&args)), false);
        self.state.config.config.entrypoint = Some(args);
        if !self.state.has_cmd {
            // The base's arguments were for the base's entry point.
            self.state.config.config.cmd = None;
        }
        Ok(())
    }

    pub fn healthcheck(&mut self, check: &Healthcheck) -> Result {
        let health = match check {
            Healthcheck::None => Health { test: vec!["NONE".to_owned()], ..Health::default() },
            Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries } => {
                let mut test = match command {
                    Command::Exec(_) => vec!["CMD".to_owned()],
                    Command::Shell(_) | Command::Script { .. } => vec!["CMD-SHELL".to_owned()],
                };
                match command {
                    Command::Exec(args) => test.extend(args.iter().cloned()),
                    Command::Shell(text) | Command::Script { content: text, .. } => test.push(text.clone()),
                }
                let nanoseconds =
                    |d: &Option<std::time::Duration>| d.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
                Health {
                    test,
                    interval: nanoseconds(interval),
                    timeout: nanoseconds(timeout),
                    start_period: nanoseconds(start_period),
                    start_interval: nanoseconds(start_interval),
                    retries: i64::from(*retries),
                }
            }
        };
        self.state.commit(format!("HEALTHCHECK {}", quote_health(&health)), false);
        self.state.config.config.healthcheck = Some(health);
        Ok(())
    }

    pub fn expose(&mut self, step: &Step, ports: &[Spanned<String>]) -> Result {
        let mut shown = Vec::new();
        for written in ports {
            let lookup = |name: &str| self.state.env.get(name).map(str::to_owned);
            let words = expand_words(&written.value, self.all.request.dockerfile.escape, &lookup);
            for word in words.map_err(|e| self.misspelt(step, written, written.span, &e))? {
                let spec = parse_port_spec(&word).map_err(|e| LowerError::at(step.at(written.span), e.to_string()))?;
                shown.extend(spec.keys());
                if shown.len() > MOST_PORTS {
                    return Err(LowerError::at(step.at(written.span), "EXPOSE names more ports than there are"));
                }
            }
        }
        for port in &shown {
            self.state.config.config.exposed_ports.insert(port.clone(), Empty {});
        }
        self.state.commit(format!("EXPOSE {}", plain_list(&shown)), false);
        Ok(())
    }

    pub fn user(&mut self, step: &Step, user: &Spanned<String>) -> Result {
        let user = self.expand(step, user)?;
        self.state.commit(format!("USER {user}"), false);
        self.state.config.config.user = user;
        Ok(())
    }

    pub fn volume(&mut self, step: &Step, paths: &[Spanned<String>]) -> Result {
        let mut shown = Vec::with_capacity(paths.len());
        for written in paths {
            let path = self.expand(step, written)?;
            if path.is_empty() {
                return Err(LowerError::at(step.at(written.span), "VOLUME specified can not be an empty string"));
            }
            self.state.config.config.volumes.insert(path.clone(), Empty {});
            shown.push(path);
        }
        self.state.commit(format!("VOLUME {}", plain_list(&shown)), false);
        Ok(())
    }

    pub fn stopsignal(&mut self, step: &Step, written: &Spanned<String>) -> Result {
        let signal = self.expand(step, written)?;
        if !is_signal(&signal) {
            let error = LowerError::at(step.at(written.span), format!("invalid signal: {signal}"));
            let name = signal.to_uppercase();
            let near = nearest(name.trim_start_matches("SIG"), signal::NAMES.iter().map(|(name, _)| *name));
            return Err(error.with_help(Some(match near {
                Some(near) => format!("did you mean SIG{near}?"),
                None => "expected a number or a name such as SIGTERM".to_owned(),
            })));
        }
        self.state.commit(format!("STOPSIGNAL {signal}"), false);
        self.state.config.config.stop_signal = signal;
        Ok(())
    }

    pub fn shell(&mut self, words: &[String]) -> Result {
        self.state.commit(format!("SHELL {}", plain_list(words)), false);
        self.state.config.config.shell = Some(words.to_vec());
        Ok(())
    }

    pub fn workdir(&mut self, step: &Step, written: &Spanned<String>) -> Result {
        let given = self.expand(step, written)?;
        let dir = join(&self.state.dir(), &given);
        // BuildKit tidies relative paths only: `WORKDIR /app/` is `/app/` in the image.
        let shown = if given.starts_with('/') { given } else { dir.clone() };
        self.state.config.config.working_dir.clone_from(&shown);
        if dir == "/" {
            self.state.commit(format!("WORKDIR {shown}"), false);
            return Ok(());
        }
        let (input, inputs) = match self.state.root {
            Some(root) => (ActionInput::Input(0), vec![root]),
            None => (ActionInput::Scratch, Vec::new()),
        };
        let user = self.state.config.config.user.clone();
        let mkdir = MkdirAction {
            path: dir.clone(),
            mode: 0o755,
            make_parents: true,
            owner: (!user.is_empty()).then(|| owner(&user, input)),
            timestamp: self.all.epoch,
        };
        let action = FileAction { input, output: Some(0), kind: FileActionKind::Mkdir(mkdir) };
        let title = self.title(step, ExpandMode::WORD, &[]);
        let name = self.next_name(step, &title);
        let meta = self.meta(step, name);
        self.state.root = Some(self.vertex(Op::File(FileOp { actions: vec![action] }), inputs, None, meta)?);
        self.state.commit(format!("WORKDIR {shown}"), true);
        Ok(())
    }
}

/// As docker: a number may be any.
fn is_signal(text: &str) -> bool {
    signal::number(text).is_some() || text.parse::<u8>().is_ok_and(|number| number > 0)
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn signals_by_name_and_number() {
        for yes in ["SIGTERM", "9", "SIGRTMIN+3", "200"] {
            assert!(is_signal(yes), "{yes}");
        }
        for no in ["", "0", "SIGFOO", "-9", "300", "EMT"] {
            assert!(!is_signal(no), "{no}");
        }
    }
}
