//! `# check=skip=A,B;error=true;experimental=C` and the same in a comment before an instruction.

use crate::parse::split_directive;
use crate::rules::Rule;
use crate::values::parse_bool;

/// Which checks run, and whether a finding fails the build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Rules not to run, by name.
    pub skip: Vec<String>,
    /// Run none but experimental rules that are asked for.
    pub skip_all: bool,
    /// Experimental rules to run, by name.
    pub experimental: Vec<String>,
    /// Run all experimental rules.
    pub experimental_all: bool,
    /// A finding is an error.
    pub error: bool,
}

/// Check options that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to parse check options: invalid check option {0:?}")]
pub struct CheckOptionsError(pub String);

impl CheckOptions {
    /// Parses the value of the directive or of the `BUILDKIT_DOCKERFILE_CHECK` build arg.
    pub fn parse(text: &str) -> Result<CheckOptions, CheckOptionsError> {
        let mut options = CheckOptions::default();
        if text.trim().is_empty() {
            return Ok(options);
        }
        for part in text.split(';') {
            let error = || CheckOptionsError(part.trim().to_owned());
            let (key, value) = part.split_once('=').ok_or_else(error)?;
            let value = value.trim();
            let names = || value.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
            match key.trim() {
                "skip" if value == "all" => options.skip_all = true,
                "skip" => options.skip = names(),
                "experimental" if value == "all" => options.experimental_all = true,
                "experimental" => options.experimental = names(),
                "error" => options.error = parse_bool(value).ok_or_else(error)?,
                _ => return Err(error()),
            }
        }
        Ok(options)
    }

    /// These options with those of a `check=` comment among the comments before an instruction; only the first counts, and one that is
    /// malformed changes nothing.
    pub(crate) fn with_comments(&self, comments: &[String]) -> Option<CheckOptions> {
        let value = comments.iter().find_map(|c| split_directive(c).filter(|(key, _)| key == "check"))?.1;
        let extra = CheckOptions::parse(value.split(' ').next().unwrap_or_default()).ok()?;
        let mut merged = self.clone();
        merged.skip.extend(extra.skip);
        merged.experimental.extend(extra.experimental);
        merged.skip_all |= extra.skip_all;
        merged.experimental_all |= extra.experimental_all;
        merged.error |= extra.error;
        Some(merged)
    }

    /// Whether a rule runs.
    pub fn allows(&self, rule: Rule) -> bool {
        let named = |list: &[String]| list.iter().any(|n| n == rule.name());
        if rule.is_experimental() {
            self.experimental_all || named(&self.experimental)
        } else {
            !self.skip_all && !named(&self.skip)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        let options =
            CheckOptions::parse("skip=StageNameCasing, UndefinedVar;error=true;experimental=CopyIgnoredFile").unwrap();
        assert!(!options.allows(Rule::UndefinedVar) && options.allows(Rule::FromAsCasing));
        assert!(options.allows(Rule::CopyIgnoredFile) && !options.allows(Rule::InvalidDefinitionDescription));
        assert!(options.error);
        let all = CheckOptions::parse("skip=all;experimental=all").unwrap();
        assert!(!all.allows(Rule::UndefinedVar) && all.allows(Rule::CopyIgnoredFile) && !all.error);
        assert_eq!(CheckOptions::parse(" "), Ok(CheckOptions::default()));
        for bad in ["skip", "error=maybe", "x=1", "skip=A;;"] {
            assert!(CheckOptions::parse(bad).is_err(), "{bad}");
        }
        let comments = ["text".to_string(), "check=skip=UndefinedVar".to_string()];
        assert!(!CheckOptions::default().with_comments(&comments).unwrap().allows(Rule::UndefinedVar));
        assert_eq!(CheckOptions::default().with_comments(&["check=bogus".to_string()]), None);
    }
}
