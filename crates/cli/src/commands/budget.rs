//! How much of the disk the store may use: the same three limits for `kiln prune` and for builds.

use std::path::Path;

use clap::Args;
use kiln_engine::budget::Budget;

use super::parse::bytes;
use crate::error::CliError;

/// Limits on the command line.
#[derive(Debug, Default, Args)]
pub struct BudgetArgs {
    /// The store may use this much, such as 20g
    #[arg(long, value_name = "BYTES")]
    pub max_used_space: Option<String>,
    /// The disk must have this much left
    #[arg(long, value_name = "BYTES")]
    pub min_free_space: Option<String>,
    /// The store may always use this much
    #[arg(long, value_name = "BYTES", alias = "keep-storage")]
    pub reserved_space: Option<String>,
}

impl BudgetArgs {
    /// Whether any limit is given.
    pub fn is_given(&self) -> bool {
        self.max_used_space.is_some() || self.min_free_space.is_some() || self.reserved_space.is_some()
    }

    /// The limits. 0, also by default, is none.
    pub fn budget(&self) -> Result<Budget, CliError> {
        let size = |flag: &str, text: &Option<String>| text.as_deref().map_or(Ok(0), |t| bytes(flag, t));
        Ok(Budget {
            max_used_space: size("--max-used-space", &self.max_used_space)?,
            min_free_space: size("--min-free-space", &self.min_free_space)?,
            reserved_space: size("--reserved-space", &self.reserved_space)?,
        })
    }
}

/// The limits for builds: variables, else the section `[store]` of kiln.toml, else those that [`Budget::of_disk`] thinks good.
pub fn for_builds(config: Option<&Path>, root: &Path) -> Result<Budget, CliError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let mut limits = BudgetArgs {
        max_used_space: variable("KILN_MAX_USED_SPACE"),
        min_free_space: variable("KILN_MIN_FREE_SPACE"),
        reserved_space: variable("KILN_RESERVED_SPACE"),
    };
    if !limits.is_given()
        && let Some(path) = config
    {
        limits = from_file(path)?;
    }
    if limits.is_given() { limits.budget() } else { Ok(Budget::of_disk(root)) }
}

fn from_file(path: &Path) -> Result<BudgetArgs, CliError> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BudgetArgs::default()),
        other => other.map_err(|e| CliError::failed(format!("can't read {}: {e}", path.display())))?,
    };
    parse(&text).map_err(|e| CliError::failed(format!("{}: {e}", path.display())))
}

fn parse(text: &str) -> Result<BudgetArgs, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let mut limits = BudgetArgs::default();
    let Some(section) = table.get("store") else { return Ok(limits) };
    for (key, value) in section.as_table().ok_or("store is not a section")? {
        let slot = match key.as_str() {
            "max-used-space" => &mut limits.max_used_space,
            "min-free-space" => &mut limits.min_free_space,
            "reserved-space" => &mut limits.reserved_space,
            other => {
                return Err(format!(
                    "[store] has no {other}: known are max-used-space, min-free-space, reserved-space"
                ));
            }
        };
        *slot = match value {
            toml::Value::String(text) => Some(text.clone()),
            toml::Value::Integer(n) => Some(n.to_string()),
            _ => return Err(format!("[store] {key}: expected a size such as \"20g\"")),
        };
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_read_and_mistakes_are_told() {
        let limits = parse("[store]\nmax-used-space = \"20g\"\nmin-free-space = 5\n[registries]\n").unwrap();
        let budget = limits.budget().unwrap();
        assert_eq!((budget.max_used_space, budget.min_free_space), (20 << 30, 5));
        assert!(!parse("").unwrap().is_given());
        assert!(parse("[store]\nmax-space = 1").unwrap_err().contains("max-used-space"));
    }
}
