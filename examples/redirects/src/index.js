// Redirects the addresses of an old site to those of a new one: any number of rules,
// one lookup. A rule is a key, the path; its value is where the path is now, and its
// metadata may say with which status.

/**
 * @typedef {{ RULES: KVNamespace }} Env
 * @typedef {{ status?: 301 | 302 | 307 | 308 }} Rule
 */

const CACHE_SECONDS = 3600; // rules hardly ever change
const MAX_KEY_BYTES = 512; // of KV: no rule is longer

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const url = new URL(request.url);
		const path = url.pathname.length > 1 ? url.pathname.replace(/\/+$/, "") : "/"; // /a/ is /a
		if (path.length > MAX_KEY_BYTES) {
			return fetch(request);
		}
		const { value, metadata } = await env.RULES.getWithMetadata(path, { cacheTtl: CACHE_SECONDS });
		if (value === null) {
			return fetch(request); // what did not move is where it was
		}
		const target = new URL(value, url);
		if (target.search === "") {
			target.search = url.search;
		}
		return Response.redirect(target.href, /** @type {Rule | null} */ (metadata)?.status ?? 301);
	},
};
