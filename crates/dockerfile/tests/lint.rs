//! Every build check: when it fires, what it says, where it points, and when it is silent.

#![allow(clippy::unwrap_used)]

use kiln_dockerfile::{
    BaseImage, CheckOptions, IgnoreFile, IgnoreMatcher, LintContext, LintReport, Rule, lint, parse, violation,
};

fn report(text: &str, context: &LintContext<'_>) -> (LintReport, Vec<String>) {
    let result = parse(text.as_bytes(), "f");
    assert!(!result.has_errors(), "{:?}", result.diagnostics);
    let report = lint(&result.dockerfile, context);
    let lines = report.diagnostics.iter().map(|d| {
        let help = d.help.take_or_empty();
        d.one_line(&result.dockerfile.source).replace("f:", "").replace(&format!(" ({help})"), "")
    });
    let lines = lines.collect();
    (report, lines)
}

trait TakeOrEmpty {
    fn take_or_empty(&self) -> String;
}

impl TakeOrEmpty for Option<String> {
    fn take_or_empty(&self) -> String {
        self.clone().unwrap_or_else(|| "\0".into())
    }
}

fn all() -> LintContext<'static> {
    LintContext { all_stages: true, ..LintContext::default() }
}

fn findings(text: &str) -> Vec<String> {
    report(text, &all()).1
}

/// No finding at all.
fn clean(text: &str) {
    assert_eq!(findings(text), [] as [&str; 0], "{text}");
}

#[test]
fn stage_names() {
    assert_eq!(
        findings("FROM scratch AS Bad\nFROM scratch as base2\nFROM scratch AS context\nFROM scratch AS bad\n"),
        [
            "1:17: warning: StageNameCasing: Stage name 'Bad' should be lowercase",
            "2:14: warning: FromAsCasing: 'as' and 'FROM' keywords' casing do not match",
            "3:17: warning: ReservedStageName: Stage name should not use the same name as reserved stage \"context\"",
            "4:17: warning: DuplicateStageName: Duplicate stage name \"bad\", stage names should be unique",
        ]
    );
    clean("from scratch as a\nfrom a as b\n");
    clean("FROM scratch AS linux-amd64\n");
}

#[test]
fn casing_of_instructions() {
    assert_eq!(
        findings("FROM scratch\ncopy a /\nCOPY b /\nCoPy c /\n"),
        [
            "2:1: warning: ConsistentInstructionCasing: Command 'copy' should match the case of the command majority (uppercase)",
            "4:1: warning: ConsistentInstructionCasing: Command 'CoPy' should match the case of the command majority (uppercase)",
        ]
    );
    assert_eq!(
        findings("FROM scratch\ncopy a /\ncopy b /\n"),
        [
            "1:1: warning: ConsistentInstructionCasing: Command 'FROM' should match the case of the command majority (lowercase)"
        ]
    );
    clean("from scratch\ncopy a /\n");
}

#[test]
fn empty_continuation_and_maintainer() {
    assert_eq!(
        findings("FROM scratch\nCOPY a \\\n\n b /\nMAINTAINER me\n"),
        [
            "3:1: warning: NoEmptyContinuation: Empty continuation line",
            "5:1: warning: MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label",
        ]
    );
}

#[test]
fn once_and_json() {
    assert_eq!(
        findings("FROM scratch\nCMD [\"a\"]\nCMD b\nENTRYPOINT c\nHEALTHCHECK CMD x\nHEALTHCHECK NONE\n"),
        [
            "2:1: warning: MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
            "3:1: warning: JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
            "4:1: warning: JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals",
            "5:1: warning: MultipleInstructionsDisallowed: Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one will be used",
        ]
    );
    // A shell that was chosen is wanted; a stage that inherits it too.
    clean("FROM scratch AS a\nSHELL [\"bash\", \"-c\"]\nCMD x\nFROM a\nENTRYPOINT y\n");
    clean("FROM scratch AS a\nCMD []\nFROM a\nCMD [\"x\"]\n");
}

#[test]
fn key_value_forms_and_secrets() {
    assert_eq!(
        findings("FROM scratch\nENV key v a l\nLABEL l x\nARG GITHUB_TOKEN\nENV A=1 PASSWORD=x PUBLIC_KEY=y\n"),
        [
            "2:1: warning: LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
            "2:5: warning: SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"key\")",
            "3:1: warning: LegacyKeyValueFormat: \"LABEL key=value\" should be used instead of legacy \"LABEL key value\" format",
            "4:5: warning: SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"GITHUB_TOKEN\")",
            "5:9: warning: SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"PASSWORD\")",
        ]
    );
}

#[test]
fn from_arguments() {
    assert_eq!(
        findings(
            "ARG VERSION=1\nFROM alpine:${VERSOIN}\nFROM --platform=$MYPLATFORM alpine\nFROM --platform=$TARGETPLATFORM alpine\nFROM --platform=linux/arm64 alpine\n"
        ),
        [
            "2:6: warning: InvalidDefaultArgInFrom: Default value for ARG alpine:${VERSOIN} results in empty or invalid base image name",
            "2:13: warning: UndefinedArgInFrom: FROM argument 'VERSOIN' is not declared (did you mean VERSION?)",
            "3:17: warning: UndefinedArgInFrom: FROM argument 'MYPLATFORM' is not declared",
            "4:17: warning: RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
            "5:17: warning: FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/arm64\"",
        ]
    );
    clean(
        "ARG V\nFROM alpine${V:+:$V}\nFROM --platform=$BUILDPLATFORM alpine AS x\nFROM --platform=arm64 alpine AS build-arm64\nFROM x\n",
    );
    clean("ARG B=a\nFROM scratch AS stage-a\nFROM stage-$B\nFROM deb://bookworm\n");
    let text = "ARG TAG\nFROM busybox:${TAG}\n";
    let mut context = all();
    context.build_args.insert("TAG".into(), "1".into());
    // Given or not: the default is what the rule is about.
    let expected = [
        "2:6: warning: InvalidDefaultArgInFrom: Default value for ARG busybox:${TAG} results in empty or invalid base image name",
    ];
    assert_eq!(report(text, &context).1, expected);
}

#[test]
fn workdir_and_expose() {
    assert_eq!(
        findings("FROM scratch\nWORKDIR app/src\nWORKDIR x\nEXPOSE 80/TCP 127.0.0.1:81:81 $UNSET\n"),
        [
            "2:9: warning: WorkdirRelativePath: Relative workdir \"app/src\" can have unexpected results if the base image changes",
            "4:8: warning: ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase",
            "4:15: warning: ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:81:81'",
            "4:31: warning: UndefinedVar: Usage of undefined variable '$UNSET'",
        ]
    );
    clean("FROM scratch AS a\nWORKDIR /app\nWORKDIR src\nFROM a\nWORKDIR sub\nEXPOSE 80 443/udp 8000-8010\n");
    clean("FROM unknown\nWORKDIR $APP_HOME\n");
}

#[test]
fn undefined_variables() {
    assert_eq!(
        findings(
            "ARG GLOBAL=1\nFROM scratch\nARG foo\nCOPY Dockerfile${foo} .\nCOPY $bar ${bar}\nENV PATH=$PAHT:/x \\\n    Z=${NOPE:-ok}\nRUN echo $shell\nLABEL a=$GLOBAL\nARG d=$e\n"
        ),
        [
            "5:6: warning: UndefinedVar: Usage of undefined variable '$bar'",
            "5:11: warning: UndefinedVar: Usage of undefined variable '$bar'",
            "6:10: warning: UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?)",
            "7:7: warning: UndefinedVar: Usage of undefined variable '$NOPE'",
            "9:9: warning: UndefinedVar: Usage of undefined variable '$GLOBAL'",
            "10:7: warning: UndefinedVar: Usage of undefined variable '$e'",
        ]
    );
    let (report, _) = report("ARG GLOBAL=1\nFROM scratch\nLABEL a=$GLOBAL\n", &all());
    assert_eq!(
        report.diagnostics[0].help.as_deref(),
        Some("a global ARG is visible in a stage after `ARG GLOBAL` in that stage")
    );
    clean(
        "FROM scratch AS a\nENV X=1\nARG y=2\nFROM a\nCOPY $X$y /\nCOPY <<'E' /\n$no\nE\nRUN --mount=type=cache,target=/$X true\n",
    );
    clean("FROM scratch AS a\nONBUILD ARG V=1\nFROM a\nLABEL v=$V\n");
    assert_eq!(
        findings("FROM scratch\nCOPY <<E /\n\"$no\"\nE\n"),
        ["3:2: warning: UndefinedVar: Usage of undefined variable '$no'"]
    );
    // What an unknown base image defines is unknown, but a slip of the finger is not.
    assert_eq!(
        findings("FROM node\nENV VERSION=1\nLABEL a=$NODE_ENV b=$VERSIN\n"),
        ["3:21: warning: UndefinedVar: Usage of undefined variable '$VERSIN' (did you mean $VERSION?)"]
    );
    let lookup = |name: &str| (name == "node").then(|| BaseImage { env: vec!["NODE_ENV=x".into()], has_shell: true });
    let context = LintContext { all_stages: true, base_image: Some(&lookup), ..LintContext::default() };
    let text = "FROM node\nLABEL a=$NODE_ENV b=$OTHER\nCMD x\n";
    assert_eq!(self::report(text, &context).1, ["2:21: warning: UndefinedVar: Usage of undefined variable '$OTHER'"]);
}

#[test]
fn triggers_are_checked_in_the_stage_that_runs_them() {
    let text = "FROM scratch AS a\nONBUILD ENV x=$nowhere\nONBUILD WORKDIR app\nFROM a\nWORKDIR b\nFROM a\n";
    let expected = [
        "2:15: warning: UndefinedVar: Usage of undefined variable '$nowhere'",
        "3:17: warning: WorkdirRelativePath: Relative workdir \"app\" can have unexpected results if the base image changes",
    ];
    assert_eq!(report(text, &all()).1, expected);
    let defined = "FROM scratch AS a\nARG nowhere\nONBUILD ENV x=$nowhere\nFROM a\nFROM A AS b\n";
    assert_eq!(report(defined, &all()).1, [] as [&str; 0]);
}

#[test]
fn ignored_sources() {
    let ignore = IgnoreMatcher::new(&IgnoreFile::parse(b"*.log\ntmp\n", ".dockerignore")).unwrap();
    let options = CheckOptions::parse("experimental=CopyIgnoredFile").unwrap();
    let context = LintContext {
        all_stages: true,
        ignore: Some(&ignore),
        options: Some(options.clone()),
        ..LintContext::default()
    };
    let text =
        "FROM scratch AS a\nCOPY ./x/../a.log main.c /\nADD tmp/f https://h/x.log /\nCOPY --from=a b.log /\nCOPY . /\n";
    let (found, lines) = report(text, &context);
    assert_eq!(
        lines,
        [
            "2:6: warning: CopyIgnoredFile: Attempting to Copy file \"a.log\" that is excluded by .dockerignore",
            "3:5: warning: CopyIgnoredFile: Attempting to Add file \"tmp/f\" that is excluded by .dockerignore",
        ]
    );
    assert_eq!(found.diagnostics[1].help.as_deref(), Some("excluded by line 2 of .dockerignore: tmp"));
    let everything = IgnoreMatcher::from_patterns(&["*"]).unwrap();
    let context = LintContext { ignore: Some(&everything), options: Some(options.clone()), ..LintContext::default() };
    assert_eq!(report("FROM scratch\nCOPY . /\n", &context).1.len(), 1);
    let negated = IgnoreMatcher::from_patterns(&["*", "!a"]).unwrap();
    let context = LintContext { ignore: Some(&negated), options: Some(options), ..LintContext::default() };
    assert_eq!(report("FROM scratch\nCOPY b /\n", &context).1.len(), 0);
}

#[test]
fn descriptions() {
    let text = "# check=experimental=InvalidDefinitionDescription\n# about bar\nARG foo=1\n# base the base\nFROM scratch AS base\n# a b\nARG a b\n# stray\n\nARG c\n# stray\nARG d e\n# stray\nRUN x\n";
    assert_eq!(
        findings(text),
        [
            "3:1: warning: InvalidDefinitionDescription: Comment for ARG should follow the format: `# foo <description>`",
            "12:1: warning: InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>`",
        ]
    );
}

#[test]
fn options() {
    let text = "FROM scratch as a\nMAINTAINER x\n";
    let (report_, lines) = report(&format!("# check=skip=FromAsCasing;error=true\n{text}"), &all());
    assert_eq!(lines.len(), 1);
    assert!(report_.fails_build());
    assert_eq!(violation(&report_.diagnostics), "lint violation found for rules: MaintainerDeprecated");
    assert!(!report(&format!("# check=skip=all;error=true\n{text}"), &all()).0.fails_build());
    assert_eq!(
        report(&format!("# check=bogus\n{text}"), &all()).1[2],
        "1:9: error: failed to parse check options: invalid check option \"bogus\""
    );
    // In a comment before one instruction.
    assert_eq!(findings("FROM scratch\n# check=skip=MaintainerDeprecated\nMAINTAINER x\n"), [] as [&str; 0]);
    let overridden = LintContext { options: Some(CheckOptions::parse("skip=all").unwrap()), ..all() };
    assert_eq!(report(text, &overridden).1, [] as [&str; 0]);
}

#[test]
fn only_the_stages_of_the_target_are_followed() {
    let text = "FROM scratch AS a\nLABEL x=$a\nFROM scratch AS b\nLABEL x=$b\nFROM scratch AS c\nLABEL x=$c\nFROM b\nCOPY --from=c / /\nRUN --mount=from=3 x\n";
    let names = |context: &LintContext<'_>| {
        let (report, _) = report(text, context);
        report.diagnostics.iter().map(|d| d.message.clone()).collect::<Vec<_>>().join(" ")
    };
    let message = |n| format!("Usage of undefined variable '${n}'");
    assert_eq!(names(&LintContext::default()), format!("{} {}", message("b"), message("c")));
    assert_eq!(names(&LintContext { target: Some("A".into()), ..LintContext::default() }), message("a"));
    assert_eq!(names(&all()), format!("{} {} {}", message("a"), message("b"), message("c")));
    assert!(Rule::all().count() > 20);
}
