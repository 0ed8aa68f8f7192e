//! The build checks by name, with the descriptions and pages that BuildKit publishes.

/// A build check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Stage names should be lower case.
    StageNameCasing,
    /// `AS` should be cased as `FROM` is.
    FromAsCasing,
    /// An empty line inside a continued instruction.
    NoEmptyContinuation,
    /// Instructions cased differently from the majority.
    ConsistentInstructionCasing,
    /// Two stages with one name.
    DuplicateStageName,
    /// A stage called `scratch` or `context`.
    ReservedStageName,
    /// `CMD` or `ENTRYPOINT` in shell form.
    JSONArgsRecommended,
    /// `MAINTAINER`.
    MaintainerDeprecated,
    /// `FROM` uses a variable that no global `ARG` declares.
    UndefinedArgInFrom,
    /// `WORKDIR` with a relative path before any absolute one.
    WorkdirRelativePath,
    /// A variable that nothing defines.
    UndefinedVar,
    /// Several `CMD`, `ENTRYPOINT` or `HEALTHCHECK` in a stage.
    MultipleInstructionsDisallowed,
    /// `ENV key value`.
    LegacyKeyValueFormat,
    /// `FROM --platform=$TARGETPLATFORM`.
    RedundantTargetPlatform,
    /// A secret's name in `ARG` or `ENV`.
    SecretsUsedInArgOrEnv,
    /// Without build args the base name is empty or invalid.
    InvalidDefaultArgInFrom,
    /// `FROM --platform` with a constant.
    FromPlatformFlagConstDisallowed,
    /// The source of a `COPY` is excluded by the ignore file.
    CopyIgnoredFile,
    /// A comment before a stage or argument that does not describe it.
    InvalidDefinitionDescription,
    /// `EXPOSE 80/TCP`.
    ExposeProtoCasing,
    /// `EXPOSE` with an address or host port.
    ExposeInvalidFormat,
    /// The base image is for another platform (raised when the image is resolved).
    InvalidBaseImagePlatform,
}

struct Info {
    rule: Rule,
    name: &'static str,
    description: &'static str,
    page: &'static str,
    experimental: bool,
}

macro_rules! rules {
    ($($rule:ident, $page:literal, $experimental:literal, $description:literal;)*) => {
        const TABLE: &[Info] = &[$(Info {
            rule: Rule::$rule,
            name: stringify!($rule),
            description: $description,
            page: concat!("https://docs.docker.com/go/dockerfile/rule/", $page, "/"),
            experimental: $experimental,
        }),*];
    };
}

rules! {
    StageNameCasing, "stage-name-casing", false, "Stage names should be lowercase";
    FromAsCasing, "from-as-casing", false, "The 'as' keyword should match the case of the 'from' keyword";
    NoEmptyContinuation, "no-empty-continuation", false, "Empty continuation lines will become errors in a future release";
    ConsistentInstructionCasing, "consistent-instruction-casing", false,
        "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DuplicateStageName, "duplicate-stage-name", false, "Stage names should be unique";
    ReservedStageName, "reserved-stage-name", false, "Reserved words should not be used as stage names";
    JSONArgsRecommended, "json-args-recommended", false,
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MaintainerDeprecated, "maintainer-deprecated", false,
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UndefinedArgInFrom, "undefined-arg-in-from", false, "FROM command must use declared ARGs";
    WorkdirRelativePath, "workdir-relative-path", false,
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UndefinedVar, "undefined-var", false, "Variables should be defined before their use";
    MultipleInstructionsDisallowed, "multiple-instructions-disallowed", false,
        "Multiple instructions of the same type should not be used in the same stage";
    LegacyKeyValueFormat, "legacy-key-value-format", false,
        "Legacy key/value format with whitespace separator should not be used";
    RedundantTargetPlatform, "redundant-target-platform", false,
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SecretsUsedInArgOrEnv, "secrets-used-in-arg-or-env", false, "Sensitive data should not be used in the ARG or ENV commands";
    InvalidDefaultArgInFrom, "invalid-default-arg-in-from", false,
        "Default value for global ARG results in an empty or invalid base image name";
    FromPlatformFlagConstDisallowed, "from-platform-flag-const-disallowed", false,
        "FROM --platform flag should not use a constant value";
    CopyIgnoredFile, "copy-ignored-file", true, "Attempting to Copy file that is excluded by .dockerignore";
    InvalidDefinitionDescription, "invalid-definition-description", true,
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    ExposeProtoCasing, "expose-proto-casing", false, "Protocol in EXPOSE instruction should be lowercase";
    ExposeInvalidFormat, "expose-invalid-format", false,
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
    InvalidBaseImagePlatform, "invalid-base-image-platform", false, "Base image platform does not match expected target platform";
}

impl Rule {
    fn info(self) -> &'static Info {
        // The table has one row per variant (checked by a test); the first row is never reached as a fallback.
        TABLE.iter().find(|i| i.rule == self).unwrap_or(&TABLE[0])
    }

    /// Every rule, in the order of BuildKit's index.
    pub fn all() -> impl Iterator<Item = Rule> {
        TABLE.iter().map(|i| i.rule)
    }

    /// The rule's name as users write it in `# check=skip=`.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// What the rule is about, in one sentence.
    pub fn description(self) -> &'static str {
        self.info().description
    }

    /// The documentation page.
    pub fn url(self) -> Option<&'static str> {
        // BuildKit publishes no page for the rule that is raised when the image is resolved.
        (self != Rule::InvalidBaseImagePlatform).then_some(self.info().page)
    }

    /// Whether the rule runs only when `experimental` names it.
    pub fn is_experimental(self) -> bool {
        self.info().experimental
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_its_own_row() {
        assert_eq!(TABLE.len(), 22);
        for info in TABLE {
            assert_eq!(info.rule.name(), info.name);
            assert!(!info.rule.description().is_empty());
        }
        assert!(Rule::CopyIgnoredFile.is_experimental() && !Rule::UndefinedVar.is_experimental());
        assert_eq!(Rule::UndefinedVar.url(), Some("https://docs.docker.com/go/dockerfile/rule/undefined-var/"));
    }
}
