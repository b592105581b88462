// Gives apps their configuration: GET /APP. In KV are
//
//     current/APP     which configuration an app has now: {"hash": "…", "bytes": 123}
//     payload/HASH    a configuration, under the SHA-256 of its bytes
//
// A payload never changes, so whoever has it once never asks for it again. What is
// asked for all the time is the pointer, which is small.

/**
 * @typedef {{ CONFIGS: KVNamespace }} Env
 * @typedef {{ hash: string, bytes: number }} Pointer
 */

const POINTER_CACHE_SECONDS = 30; // how long apps may go on with the configuration before
const PAYLOAD_CACHE_SECONDS = 30 * 24 * 3600; // as good as for ever

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const [, app] = new URL(request.url).pathname.match(/^\/([\w-]{1,64})$/) ?? [];
		if (!app) {
			return Response.json({ error: "want /APP" }, { status: 404 });
		}
		if (request.method !== "GET" && request.method !== "HEAD") {
			return Response.json({ error: "not allowed here" }, { status: 405 });
		}
		const pointer = /** @type {Pointer | null} */ (
			await env.CONFIGS.get(`current/${app}`, { type: "json", cacheTtl: POINTER_CACHE_SECONDS })
		);
		if (!pointer) {
			return Response.json({ error: `${app} has no configuration` }, { status: 404 });
		}
		const headers = { ETag: `"${pointer.hash}"`, "Cache-Control": `max-age=${POINTER_CACHE_SECONDS}` };
		if (matches(request.headers.get("If-None-Match"), headers.ETag)) {
			return new Response(null, { status: 304, headers }); // the payload was not touched
		}
		return send(env.CONFIGS, request.method, pointer, headers);
	},
};

/**
 * @param {KVNamespace} configs
 * @param {string} method
 * @param {Pointer} pointer
 * @param {Record<string, string>} headers
 */
async function send(configs, method, { hash, bytes }, headers) {
	const payload = await configs.get(`payload/${hash}`, { type: "stream", cacheTtl: PAYLOAD_CACHE_SECONDS });
	if (!payload) {
		// It was written before the pointer, but the pointer was here before it.
		return Response.json(
			{ error: "the configuration is on its way" },
			{ status: 503, headers: { "Retry-After": "1", "Cache-Control": "no-store" } },
		);
	}
	headers["Content-Type"] = "application/json";
	if (method === "HEAD") {
		await payload.cancel();
		return new Response(null, { headers: { ...headers, "Content-Length": String(bytes) } });
	}
	// With its length told, an app sees whether it got all of it.
	const { readable, writable } = new FixedLengthStream(bytes);
	payload.pipeTo(writable).catch((error) => console.error(`payload ${hash}: ${error}`)); // the app went away
	return new Response(readable, { headers });
}

/**
 * Does a header If-None-Match name an ETag?
 * @param {string | null} header
 * @param {string} etag
 */
function matches(header, etag) {
	return (header ?? "").split(",").some((tag) => ["*", etag, `W/${etag}`].includes(tag.trim()));
}
