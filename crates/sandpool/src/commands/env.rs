//! `sandpool env`: shell exports that point unmodified clients here.

use serde_json::{Map, Value, json};

use super::Outcome;
use crate::args::Env;
use crate::client::{Context, pool_path};
use crate::credentials;
use crate::failure::Failure;
use crate::home::{ServerRecord, quoted};
use crate::print;

/// A pool's address in Azure's form. The two names in it are the client's own affair: any will do.
pub(crate) fn azure_endpoint(endpoint: &str, pool: &str) -> String {
    format!(
        "{endpoint}/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/sandpool/sessionPools/{}",
        pool_path(pool).trim_start_matches("/pools/")
    )
}

pub(crate) fn run(context: &Context, env: &Env) -> Outcome {
    sandpool_core::ids::PoolName::parse(&env.pool)
        .map_err(|error| Failure::usage(format!("--pool {}", env.pool)).because(error))?;
    let Some(record) = context.home.server() else {
        return Err(Failure::new("no server runs here")
            .because(format!("{} names no living process", context.home.server_record_path().display()))
            .advise(format!("sandpool up --detach{}", context.home.flag())));
    };
    let header = credentials::identity_header(context)?;
    let variables = variables(context, env, &record, &header)?;
    if context.json {
        let object: Map<String, Value> =
            variables.into_iter().map(|(name, value)| (name.into(), json!(value))).collect();
        print::json(&Value::Object(object))?;
    } else {
        let text: String = variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
        print::out(&text)?;
    }
    Ok(0)
}

fn variables(
    context: &Context,
    env: &Env,
    record: &ServerRecord,
    header: &str,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let endpoint = match (env.https, &record.https_endpoint) {
        (false, _) => &record.endpoint,
        (true, Some(endpoint)) => endpoint,
        (true, None) => {
            return Err(Failure::new("the server has no TLS listener")
                .advise("start it with `up --https`, or with an `https` key in its configuration file"));
        }
    };
    let pool = azure_endpoint(endpoint, &env.pool);
    let mut variables = vec![
        // Managed identities are asked for over plain HTTP, as on every Azure machine.
        ("IDENTITY_ENDPOINT", format!("{}/msi/token", record.endpoint)),
        ("IDENTITY_HEADER", header.to_owned()),
        ("SANDPOOL_ENDPOINT", endpoint.clone()),
        ("ACA_POOL_MANAGEMENT_ENDPOINT", pool.clone()),
        ("AZURE_POOL_MANAGEMENT_ENDPOINT", pool.clone()),
        ("AZURE_CONTAINER_APP_SESSION_POOL_MANAGEMENT_ENDPOINT", pool),
    ];
    if env.https {
        let authority = credentials::authority_file(context);
        if authority.exists() {
            let authority = authority.to_string_lossy().into_owned();
            for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
                variables.push((name, authority.clone()));
            }
        }
    }
    Ok(variables)
}
