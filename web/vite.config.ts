import { defineConfig, loadEnv } from "vite";

export default defineConfig(({ mode }) => {
  const daemon = loadEnv(mode, ".", "OSTLER_")["OSTLER_URL"] ?? "http://127.0.0.1:8001";
  return {
    build: {
      outDir: "../supervisor/ostler/control/static",
      emptyOutDir: true,
      target: "es2022",
      // The page runs under `default-src 'self'`, which forbids data: addresses.
      assetsInlineLimit: 0,
      modulePreload: { polyfill: false },
    },
    server: {
      proxy: {
        "/v1": {
          target: daemon,
          changeOrigin: true,
          // The daemon refuses changes whose Origin is not its own.
          headers: { origin: new URL(daemon).origin },
        },
      },
    },
  };
});
