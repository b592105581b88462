// Stands before the feed of a blog, lets everything through as it is, and keeps in
// KV how many subscribers the server of the feed says it has.

/** @typedef {{ COUNTERS: KVNamespace }} Env */

const HEADER = "X-Subscribers";

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 * @param {ExecutionContext} ctx
	 */
	async fetch(request, env, ctx) {
		ctx.passThroughOnException(); // a fault of the counter must not cost the reader the feed
		const response = await fetch(request);
		const count = response.headers.get(HEADER) ?? "";
		if (response.ok && /^\d{1,12}$/.test(count)) {
			ctx.waitUntil(record(env.COUNTERS, new URL(request.url).hostname, count)); // the reader need not wait for it
		}
		return response;
	},
};

/**
 * Writes what is new. A read costs next to nothing, a write goes round the world.
 * @param {KVNamespace} counters
 * @param {string} name
 * @param {string} count
 */
async function record(counters, name, count) {
	if ((await counters.get(name)) !== count) {
		await counters.put(name, count);
	}
}
