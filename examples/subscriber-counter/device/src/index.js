// Tells a display on somebody's desk how many subscribers a blog has: GET /HOST.

/** @typedef {{ COUNTERS: KVNamespace }} Env */

const ICON = 3200; // of the display's own gallery

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const name = new URL(request.url).pathname.slice(1);
		const count = name && (await env.COUNTERS.get(name, { cacheTtl: 60 }));
		if (!count) {
			return Response.json({ error: "nobody has counted here yet" }, { status: 404 });
		}
		return Response.json(
			{ frames: [{ icon: ICON, text: Number(count).toLocaleString("en") }] },
			{ headers: { "Cache-Control": "max-age=60" } },
		);
	},
};
