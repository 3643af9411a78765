//! The methods of `inference.GRPCInferenceService`.
//!
//! Relevant if you want to know what a method does beside decoding and encoding: nothing that HTTP does not do too. Methods
//! that are missing here are refused at the gate.
//!
//! Invariant: a call that its client cancels is dropped, and its run with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use futures_util::stream::StreamExt;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::decode::{decode, timeout};
use super::encode::{encode, status};
use super::pb::grpc_inference_service_server::GrpcInferenceService;
use super::pb::{self, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use crate::answer::Answer;
use crate::app::App;
use crate::describe::{self, Configuration, Described};
use crate::error::ApiError;
use crate::facts::Fact;
use crate::handle::{Handling, SMALL, aside};
use crate::origin::{Origin, Peer, TRACEPARENT};
use crate::registry::no_parameters;
use crate::served::Served;
use crate::stats::{Phases, Total};

/// The path of the service.
pub(super) const PATH: &str = "/inference.GRPCInferenceService/";
/// Requests of one stream that are computed at one time.
const AT_ONCE: usize = 16;

/// The service.
pub(super) struct Service {
    app: Arc<App>,
}

impl Service {
    pub(super) fn new(app: &Arc<App>) -> Self {
        Self { app: Arc::clone(app) }
    }

    fn find(&self, name: &str, version: &str) -> Result<Arc<Served>, Status> {
        self.app.registry.find(name, given(version)).map_err(status)
    }
}

/// The empty string stands for nothing.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Where a call to `method` comes from.
fn origin<T>(call: &Request<T>, method: &str) -> Origin {
    let client = call.extensions().get::<Peer>().map(|peer| peer.0);
    let traceparent = call.metadata().get(TRACEPARENT).map(MetadataValue::as_encoded_bytes);
    Origin::grpc(&format!("{PATH}{method}"), client, traceparent)
}

/// Answers a request, within `allowed` from now.
async fn infer(
    app: &App,
    origin: Origin,
    allowed: Option<Duration>,
    message: ModelInferRequest,
) -> Result<ModelInferResponse, ApiError> {
    let mut handling = Handling::new(app, origin, allowed);
    let outcome = inferred(&mut handling, message).await;
    handling.end(outcome.as_ref().map_or_else(|error| error.status, |_| StatusCode::OK));
    outcome
}

async fn inferred(
    handling: &mut Handling<'_>,
    message: ModelInferRequest,
) -> Result<ModelInferResponse, ApiError> {
    let model = handling.find(&message.model_name, given(&message.model_version))?;
    let raw: usize = message.raw_input_contents.iter().map(bytes::Bytes::len).sum();
    let listed = message.inputs.iter().any(|input| input.contents.is_some());
    let request = aside(listed || raw > SMALL, move || decode(message)).await??;
    let answer: Answer = handling.answer(&model, request).await?;
    let large = answer.outputs.iter().any(|output| output.values.len() > SMALL / 4);
    aside(large, move || encode(answer)).await
}

type Answers = tonic::codegen::BoxStream<ModelStreamInferResponse>;

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Result<Response<pb::ServerLiveResponse>, Status> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        Ok(Response::new(pb::ServerReadyResponse { ready: self.app.ready().await.is_ok() }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        let of = request.into_inner();
        let ready = match self.app.registry.find(&of.name, given(&of.version)) {
            Ok(_) => self.app.ready_pool().await.is_ok(),
            Err(error) if error.status == StatusCode::SERVICE_UNAVAILABLE => false,
            Err(error) => return Err(status(error)),
        };
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: describe::NAME.to_owned(),
            version: describe::VERSION.to_owned(),
            extensions: describe::EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        let of = request.into_inner();
        let model = self.find(&of.name, &of.version)?;
        let tensor = |fact: &Fact| pb::model_metadata_response::TensorMetadata {
            name: fact.name.clone(),
            datatype: fact.datatype.name().to_owned(),
            shape: fact.shape.clone(),
        };
        Ok(Response::new(pb::ModelMetadataResponse {
            name: model.name.clone(),
            versions: self.app.registry.versions(&of.name),
            platform: describe::PLATFORM.to_owned(),
            inputs: model.inputs.iter().map(tensor).collect(),
            outputs: model.outputs.iter().map(tensor).collect(),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let allowed = timeout(request.metadata()).map_err(status)?;
        let origin = origin(&request, "ModelInfer");
        infer(&self.app, origin, allowed, request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let allowed = timeout(request.metadata()).map_err(status)?;
        // The time is of the whole stream.
        let (started, app) = (Instant::now(), Arc::clone(&self.app));
        let origin = origin(&request, "ModelStreamInfer");
        let answers = request.into_inner().map(move |message| {
            let (app, origin) = (Arc::clone(&app), origin.clone());
            let left = allowed.map(|allowed| allowed.saturating_sub(started.elapsed()));
            async move {
                let message = message?;
                let id = message.id.clone();
                Ok(match infer(&app, origin, left, message).await {
                    Ok(answer) => ModelStreamInferResponse {
                        infer_response: Some(answer),
                        ..ModelStreamInferResponse::default()
                    },
                    Err(error) => ModelStreamInferResponse {
                        error_message: error.message,
                        infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
                    },
                })
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(AT_ONCE))))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        let of = request.into_inner();
        let model = self.find(&of.name, &of.version)?;
        Ok(Response::new(pb::ModelConfigResponse { config: Some(configuration(&Configuration::of(&model))) }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let of = request.into_inner();
        let models = self.app.registry.loaded(given(&of.name), given(&of.version)).map_err(status)?;
        let model_stats = models.iter().map(|model| statistics(model)).collect();
        Ok(Response::new(pb::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let rows = self.app.registry.listed(request.into_inner().ready).into_iter().map(|entry| {
            let (state, reason) = describe::state(&entry.state);
            pb::repository_index_response::ModelIndex {
                version: entry.version.to_string(),
                state: state.to_owned(),
                reason: reason.to_owned(),
                name: entry.name,
            }
        });
        Ok(Response::new(pb::RepositoryIndexResponse { models: rows.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let of = request.into_inner();
        no_parameters(of.parameters.keys().map(String::as_str), "").map_err(status)?;
        self.app.load(of.model_name).await.map_err(status)?;
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let of = request.into_inner();
        no_parameters(of.parameters.keys().map(String::as_str), "unload_dependents").map_err(status)?;
        self.app.unload(of.model_name).await.map_err(status)?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }
}

fn configuration(of: &Configuration<'_>) -> pb::ModelConfig {
    let data_type = |dims: &Described<'_>| {
        // The names of the enum are those of the protocol.
        pb::DataType::from_str_name(&dims.data_type).unwrap_or_default().into()
    };
    let input = |dims: &Described<'_>| pb::ModelInput {
        name: dims.name.to_owned(),
        data_type: data_type(dims),
        dims: dims.dims.to_vec(),
    };
    let output = |dims: &Described<'_>| pb::ModelOutput {
        name: dims.name.to_owned(),
        data_type: data_type(dims),
        dims: dims.dims.to_vec(),
    };
    let small = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
    pb::ModelConfig {
        name: of.name.to_owned(),
        platform: describe::PLATFORM.to_owned(),
        max_batch_size: small(of.max_batch_size),
        input: of.inputs.iter().map(input).collect(),
        output: of.outputs.iter().map(output).collect(),
        dynamic_batching: of.batching.as_ref().map(|batching| pb::ModelDynamicBatching {
            preferred_batch_size: batching.preferred_sizes.iter().map(|size| small(*size)).collect(),
            max_queue_delay_microseconds: batching.max_delay_us,
        }),
        backend: describe::NAME.to_owned(),
    }
}

fn statistics(model: &Served) -> pb::ModelStatistics {
    let totals = model.stats.totals();
    let total = |of: Total| Some(pb::StatisticDuration { count: of.count, ns: of.ns });
    let batch = |(size, of): (&usize, &Phases)| pb::InferBatchStatistics {
        batch_size: *size as u64,
        compute_input: total(of.input),
        compute_infer: total(of.infer),
        compute_output: total(of.output),
    };
    pb::ModelStatistics {
        name: model.name.clone(),
        version: model.version.to_string(),
        last_inference: totals.last_ms,
        inference_count: totals.inferences,
        execution_count: totals.executions,
        inference_stats: Some(pb::InferStatistics {
            success: total(totals.success),
            fail: total(totals.fail),
            queue: total(totals.requests.queue),
            compute_input: total(totals.requests.input),
            compute_infer: total(totals.requests.infer),
            compute_output: total(totals.requests.output),
            cache_hit: total(Total::default()),
            cache_miss: total(Total::default()),
        }),
        batch_stats: totals.batches.iter().map(batch).collect(),
    }
}
