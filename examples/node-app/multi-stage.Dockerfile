# Two stages on the same base: the cache of npm stays behind, the base does not shrink.
FROM deb://bookworm?variant=minbase&packages=nodejs,npm,ca-certificates AS build
WORKDIR /app
COPY package.json index.js ./
# A certificate of one's own, where a company looks into TLS: --secret id=ca,src=FILE. Without it nothing changes.
RUN --mount=type=secret,id=ca NODE_EXTRA_CA_CERTS=/run/secrets/ca npm install --omit=dev --no-audit --no-fund

FROM deb://bookworm?variant=minbase&packages=nodejs,npm,ca-certificates
WORKDIR /app
COPY --from=build /app /app
EXPOSE 3000
CMD ["node", "index.js"]
