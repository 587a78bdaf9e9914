//! `sandpool config`: the settings in force, and where they come from.

use serde_json::json;

use super::Outcome;
use crate::args::Config;
use crate::client::Context;
use crate::failure::Failure;
use crate::print;
use crate::server::Plan;
use crate::settings::Settings;

pub(crate) fn run(context: &Context, config: &Config) -> Outcome {
    let Config::Show { config } = config;
    let (mut settings, source) = match config {
        Some(file) => (Settings::read(file).map_err(|error| unusable(&error))?, file.display().to_string()),
        None if context.home.server().is_some() => {
            let plan = context.home.plan();
            (Plan::read(&plan)?.settings, format!("the running server ({})", plan.display()))
        }
        None => (Settings::default(), "the defaults of `up`".to_owned()),
    };
    settings.resolve(&context.home, None);
    let shown = settings.without_secrets();
    if context.json {
        let shown = serde_json::to_value(&shown).map_err(anyhow::Error::from)?;
        print::json(&json!({ "source": source, "settings": shown }))?;
    } else {
        let shown = serde_norway::to_string(&shown).map_err(anyhow::Error::from)?;
        print::out(&format!("# from {source}; keys not set there have their defaults\n{shown}"))?;
    }
    Ok(0)
}

/// The failure of settings that cannot be used.
pub(crate) fn unusable(error: &crate::settings::SettingsError) -> Failure {
    let failure = Failure::usage("the settings cannot be used").caused_by(error);
    match error {
        crate::settings::SettingsError::Read { .. } => failure,
        _ => failure.advise("docs/cli.md lists the keys; `sandpool config show` prints the defaults"),
    }
}
