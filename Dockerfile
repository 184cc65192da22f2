# Contains the environment of ipo_md for TPUs on GKE, and this checkout in /app.
#
#   gcloud builds submit --tag=REGION-docker.pkg.dev/PROJECT/REPOSITORY/ipo_md .
#
# launch/gke.py replaces /app by the commit that it runs, so the image has to be
# built again only when setup.py or constraints.txt change. This file has not
# been built yet.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app \
    TF_CPP_MIN_LOG_LEVEL=3 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1

WORKDIR /app
COPY setup.py constraints.txt README.md ./
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[tpu]'
COPY . .
