// A shop whose features are switched while it runs. All flags are one value, the
// key "flags": a request reads them once, and sees them as they were at one moment.

import { enabled } from "./flags.js";

/** @typedef {{ FLAGS: KVNamespace }} Env */

const CACHE_SECONDS = 30; // how long a point of presence may go on with old flags

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const user = new URL(request.url).searchParams.get("user") ?? "anonymous";
		const flags = await readFlags(env.FLAGS);
		const checkout = (await enabled(flags, "new-checkout", user)) ? "the new checkout" : "the old checkout";
		const banner = (await enabled(flags, "sale", user)) ? "Everything must go! " : "";
		return new Response(`${banner}Hello ${user}, this is ${checkout}.\n`);
	},
};

/**
 * Flags that cannot be read are off: the shop goes on as it was built.
 * @param {KVNamespace} namespace
 * @returns {Promise<import("./flags.js").Flags>}
 */
async function readFlags(namespace) {
	try {
		return (await namespace.get("flags", { type: "json", cacheTtl: CACHE_SECONDS })) ?? {};
	} catch (error) {
		console.error(`the flags cannot be read: ${error}`);
		return {};
	}
}
